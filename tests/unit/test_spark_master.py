"""What is told of a Spark master before any JVM starts."""

import contextlib
import socket
import threading

import pytest

from toolkit.core.errors import ClusterError
from toolkit.engines import spark_master
from toolkit.engines.spark_master import check_master, check_reachable

STREAM_FAILURE = b"\0\0\0\0\0\0\0\x15\x08\0\0\0\x02/f\0\0\0\x02no"


@contextlib.contextmanager
def answering(answer):
    """The address of something that says `answer` to whoever has said something, and hangs up; None: that says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    if answer is None:
                        connection.recv(4096)
                    else:
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("master", [None, "yarn", "spark://host:7077", "spark://one:7077,two:7077", "local-cluster[2,1,1024]"])
def test_masters_that_ray_runs_on(master):
    check_master(master, None)


@pytest.mark.parametrize(
    ("master", "remote", "words"),
    [
        ("local", None, "--cluster spark needs a cluster, got master local, which has no executors; use --cluster local"),
        ("local[*]", None, "got master local[*]"),
        ("local[4, 2]", None, "got master local[4, 2]"),
        ("k8s://https://host:443", None, "k8s is not: use Ray's own operator there, and RAY_ADDRESS"),
        (
            "mesos://host:5050",
            None,
            "Ray on Spark runs on spark://HOST:PORT, yarn and local-cluster[…], got mesos://host:5050; check --spark-master",
        ),
        ("host:7077", None, "got host:7077"),
        ("sc://host:15002/;token=SECRET", None, "use a cluster in dedicated access mode, or --cluster local"),
        (None, "sc://host:443/;token=SECRET", "got SPARK_REMOTE; unset it, "),
        ("spark://host:7077", "sc://host:443", "got SPARK_REMOTE"),
    ],
)
def test_masters_that_it_does_not(master, remote, words):
    with pytest.raises(ClusterError) as caught:
        check_master(master, remote)
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "master", ["spark://", "spark://host", "spark://:7077", "spark://host:port", "spark://host:70777", "spark://host:7077/path"]
)
def test_addresses_that_are_none(master):
    with pytest.raises(ClusterError, match="--spark-master must be spark://HOST:PORT, got spark://"):
        check_reachable(master)


@pytest.mark.parametrize("answer", [STREAM_FAILURE, b"", b"\x15\x03\x03\0\x02\x02\x46"], ids=["spark", "hangs up", "TLS"])
def test_who_may_be_a_master(answer):
    with answering(answer) as address:
        check_reachable(f"spark://{closed_port()},{address}")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something answers, but not as Spark does"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something answers, but not as Spark does"),
        (b"-ERR\r\n", "something answers, but not as Spark does"),
        (STREAM_FAILURE.replace(b"\x08", b"\x05"), "something answers, but not as Spark does"),
        (None, "no answer within 0.2 s"),
    ],
)
def test_who_is_none(monkeypatch, answer, words):
    monkeypatch.setattr(spark_master, "REACH_TIMEOUT_S", 0.2)
    with answering(answer) as address, pytest.raises(ClusterError) as caught:
        check_reachable(f"spark://{address}")
    assert f"a Spark master must answer, got {address}: {words}; start it, or check --spark-master" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (closed_port(), "Connection refused"),
        ("no-such-host.invalid:7077", "not known|resolution"),
        ("a..b:7077", "label empty or too long"),
    ],
    ids=["closed port", "unknown host", "no host name"],
)
def test_nobody_there(address, words):
    with pytest.raises(ClusterError, match=words):
        check_reachable(f"spark://{address}")


def test_masters_without_an_address_are_not_looked_for():
    for master in (None, "yarn", "local-cluster[2,1,1024]"):
        check_reachable(master)
