"""The command line: parse, call one verb, print. Nothing imports it, and it imports verbs only inside commands."""
