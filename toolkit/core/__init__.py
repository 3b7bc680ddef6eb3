"""Pure parts: standard library, numpy, pandas and pydantic only. Nothing here starts a process or opens a socket."""
