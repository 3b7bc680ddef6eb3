"""Whether Ray can run on a Spark master, as far as that can be told from its address and with a socket: before any JVM is started."""

from __future__ import annotations

import socket
import struct

from toolkit.core.errors import ClusterError

REACH_TIMEOUT_S = 5.0

NO_CONNECT = (
    "Ray on Spark needs a classic Spark session, for Spark Connect gives no executors' tasks to run Ray in",
    "use a cluster in dedicated access mode, or --cluster local",
)

# Spark's own messages (`network-common`): length with itself (8 bytes), kind (1), then a string with its length (4).
_STREAM_REQUEST, _STREAM_FAILURE = 6, 8
_NO_SUCH_STREAM = b"/files/toolkit-asks-whether-this-is-spark"
_MAX_ANSWER_BYTES = 2**20
_TLS_ALERT = b"\x15\x03"


def is_cluster(master: str) -> bool:
    """Whether it has executors, and Ray on Spark knows it."""
    return master == "yarn" or master.startswith(("spark://", "local-cluster["))


def check_master(master: str | None, remote: str | None) -> None:
    """
    Args:
        remote: SPARK_REMOTE, which would make the session a Spark Connect one.

    Raises:
        ClusterError: Ray cannot run there.
    """
    if remote or (master or "").startswith("sc://"):
        raise ClusterError(
            NO_CONNECT[0],
            got="SPARK_REMOTE" if remote else "sc://…",
            next_step="unset it, or " + NO_CONNECT[1] if remote else NO_CONNECT[1],
        )
    if master is None or is_cluster(master):
        return
    if master == "local" or master.startswith("local["):
        raise ClusterError(
            "--cluster spark needs a cluster", got=f"master {master}, which has no executors", next_step="use --cluster local"
        )
    hint = "k8s is not: use Ray's own operator there, and RAY_ADDRESS" if master.startswith("k8s://") else "check --spark-master"
    raise ClusterError("Ray on Spark runs on spark://HOST:PORT, yarn and local-cluster[…]", got=master, next_step=hint)


def check_reachable(master: str | None) -> None:
    """Of several masters any will do: the others are stand-bys. Spark itself would try for a minute.

    Raises:
        ClusterError: the address is none, nobody is there, or somebody who is not Spark.
    """
    if master is None or not master.startswith("spark://"):
        return
    problems = []
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ClusterError("--spark-master must be spark://HOST:PORT", got=master, next_step="the master's own page shows it")
        if not (problem := _problem(host.strip("[]"), int(port))):
            return
        problems.append(f"{address}: {problem}")
    raise ClusterError(
        "a Spark master must answer",
        got="; ".join(problems),
        next_step="start it, or check --spark-master: its page, on another port, shows it",
    )


def _problem(host: str, port: int) -> str:
    """Nothing where Spark answers, or where it cannot be told: with RPC over TLS it hangs up, and has to be tried."""
    body = struct.pack(">bi", _STREAM_REQUEST, len(_NO_SUCH_STREAM)) + _NO_SUCH_STREAM
    try:
        with socket.create_connection((host, port), timeout=REACH_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">q", 8 + len(body)) + body)
            answer = b""
            # To the end of the message, or the master's log would have a connection reset.
            while len(answer) < _length(answer) and (more := connection.recv(4096)):
                answer += more
    except TimeoutError:
        return f"no answer within {REACH_TIMEOUT_S:g} s"
    except ConnectionResetError:
        return ""
    except (OSError, UnicodeError) as error:  # a name may be none
        return getattr(error, "strerror", None) or str(error)
    if not answer or answer.startswith(_TLS_ALERT):
        return ""
    is_spark = len(answer) > 8 and answer[8] == _STREAM_FAILURE and int.from_bytes(answer[:8]) <= _MAX_ANSWER_BYTES
    return "" if is_spark else "something answers, but not as Spark does"


def _length(answer: bytes) -> int:
    """Of the whole message; as far as its kind while that is not known, or where it is no message of Spark's."""
    length = int.from_bytes(answer[:8]) if len(answer) >= 8 else 0
    return max(9, length) if length <= _MAX_ANSWER_BYTES else 9
