"""Ingestion on Ray: what one process makes, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.schema import TextNode
from typer.testing import CliRunner

from tests.conftest import BAKERY, PASSAGE
from tests.index.slow_embedding import (
    BLOCK,
    SlowEmbedding,
    build,
    documents,
    load_checkpoint,
    write_checkpoint,
)
from ztok_rag import ZCompressor, ZStore, ZTokenIndex, ZTokenTransform, ZtokError, cli
from ztok_rag.index import cluster
from ztok_rag.index.cluster import ray_cluster
from ztok_rag.index.distributed import RayEngine
from ztok_rag.index.segments import (
    Row,
    attempt,
    forget_attempts,
    read_segments,
    row_id,
    write_segment,
)
from ztok_rag.selection.sentences import split_sentences

INSTALLED = all(importlib.util.find_spec(name) for name in ("ray", "pyarrow"))
pytestmark = pytest.mark.skipif(not INSTALLED, reason="ray or pyarrow is not installed")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores for all tests of this file."""
    with ray_cluster(cores=2) as started:
        yield started


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Any]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    build(checkpoint, folder / "index", SlowEmbedding(log=str(folder / "log")), False).close()
    return {**held(folder / "index"), "embeddings": len(logged(folder / "log"))}


def held(path: Path) -> dict[str, Any]:
    """Ids, texts, vectors and Z-tokens of an index, all bytes of them."""
    docstore = json.loads((path / "index" / "docstore.json").read_text())
    with ZStore(path / "store") as store:
        cache: Any = store._cache
        entries = {key: cache[key] for key in cache}
    vectors = (path / "index" / "default__vector_store.json").read_bytes()
    return {"docstore": docstore, "vectors": vectors, "entries": entries}


def held_on_disk(index: ZTokenIndex) -> dict[str, Any]:
    """Chunks, vectors and Z-tokens of a large index."""
    contents: Any = index.contents
    cache: Any = index.store._cache
    rows = contents.vector_store._latest().to_arrow().to_pylist()
    return {
        "chunks": dict(contents._catalog.chunk_ids()),
        "vectors": {row["id"]: row["vector"] for row in rows},
        "entries": {key: cache[key] for key in cache},
    }


def wait_for(condition: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def logged(log: Path) -> list[tuple[int, str]]:
    """Process and text of every embedding."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [(int(pid), text) for pid, _, text in (line.partition(" ") for line in lines)]


def segments(path: Path) -> set[str]:
    return {file.name for file in (path / ".segments").glob("*.parquet")}


def test_the_same_as_in_one_process_on_the_real_models(
    ray: Any, compressor: ZCompressor, tmp_path: Path
) -> None:
    given = [Document(text=f"{PASSAGE} {BAKERY}", id_="a"), Document(text=BAKERY, id_="b")]
    settings: dict[str, Any] = {"compressor": compressor, "chunk_size": 40}
    ZTokenIndex.build(given, tmp_path / "one", **settings).close()
    engine = RayEngine(workers=1, cores=1)
    with ZTokenIndex.build(given, tmp_path / "ray", engine=engine, **settings) as index:
        assert index.store.stats.compressed == 0
        assert held(tmp_path / "ray") == held(tmp_path / "one")
        assert not (tmp_path / "ray" / ".segments").exists()
        assert len(held(tmp_path / "one")["entries"]) > 4


def test_ray_listens_to_this_machine_alone(ray: Any) -> None:
    place = ray.util.get_node_ip_address()
    assert place == "127.0.0.1" and os.environ["RAY_AUTH_MODE"] == "token"
    ours = {str(p) for p in [os.getpid(), *children(os.getpid())]}
    listening = [
        line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]  # fmt: skip
    inodes = {row[9]: row[1] for row in listening if not row[1].startswith("0100007F")}
    six = [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    inodes |= {
        row[9]: row[1] for row in six
        if row[3] == "0A" and not row[1].startswith("0000000000000000FFFF00000100007F")
    }  # fmt: skip
    opened = {socket for pid in ours for socket in sockets(pid)}
    assert opened and not opened & inodes.keys()


def test_ray_answers_to_its_token_alone(ray: Any) -> None:
    grpc = pytest.importorskip("grpc")
    channel = grpc.insecure_channel(ray.get_runtime_context().gcs_address)
    alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
    for token in (None, "0" * 64):
        given = token and [("authorization", f"Bearer {token}")]
        with pytest.raises(grpc.RpcError) as refused:
            alive(b"", timeout=30, metadata=given)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    right = [("authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")]
    assert alive(b"", timeout=30, metadata=right)


def children(pid: int) -> list[int]:
    """Processes that a process has started, and theirs."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        own = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*own, *(grandchild for child in own for grandchild in children(child))]


def sockets(pid: str) -> set[str]:
    try:
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def test_a_killed_actor_loses_a_block_at_most(
    ray: Any, checkpoint: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    log, path = tmp_path / "log", tmp_path / "index"
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: len(segments(path)) >= 2)
        killed.append(logged(log)[-1][0])
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    build(checkpoint, path, SlowEmbedding(log=str(log), seconds=0.2), on_ray=True).close()
    killer.join()
    assert killed and killed[0] != os.getpid()
    assert {**alone, **held(path)} == alone
    assert {pid for pid, _ in logged(log)} > set(killed)


def test_a_killed_driver_is_resumed(
    ray: Any, checkpoint: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    log, path = tmp_path / "log", tmp_path / "index"
    command = [sys.executable, "-m", "tests.index.slow_embedding", str(checkpoint), str(path)]
    with subprocess.Popen(
        [*command, str(log)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        wait_for(lambda: len(segments(path)) >= 4 or driver.poll() is not None)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL and not (path / "ztok.json").exists()
    workers = {pid for pid, _ in logged(log)}
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    done = len(list(read_segments(path / ".segments")))
    before = len(logged(log))
    assert done >= 4
    build(checkpoint, path, SlowEmbedding(log=str(log)), on_ray=True).close()
    assert {**alone, **held(path)} == alone
    # Each of the two workers was at one block, of the sentences of some texts or of chunks.
    most = 2 * BLOCK * max(len(split_sentences(d.text)) for d in documents())
    assert before < len(logged(log)) <= alone["embeddings"] + most


def test_a_large_index_is_built_in_blocks_that_are_resumed(
    ray: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr("ztok_rag.index.building._DOCUMENTS_AT_ONCE_ON_RAY", 6)
    settings: dict[str, Any] = {"compressor": load_checkpoint(checkpoint), "vector_store": "lance"}
    log, path = tmp_path / "log", tmp_path / "index"
    engine = RayEngine(workers=1, cores=1, block=BLOCK)
    on_ray = {**settings, "embed_model": SlowEmbedding(log=str(log)), "engine": engine}

    def broken() -> Iterator[Document]:
        yield from documents(12)[:6]
        raise OSError("the file is away")

    with pytest.raises(OSError, match="away"):
        ZTokenIndex.build(broken(), path, **on_ray)
    assert not (path / "ztok.json").exists()
    assert {file.parent.name for file in (path / ".segments").glob("*/*.parquet")} == {"0"}
    before = len(logged(log))
    with ZTokenIndex.build(documents(12), path, **on_ray) as index:
        assert index.is_large and index.store.stats.compressed == 0
        made = held_on_disk(index)
    assert not (path / ".segments").exists()

    alone = tmp_path / "log of one"
    embedding = SlowEmbedding(log=str(alone))
    with ZTokenIndex.build(
        documents(12), tmp_path / "one", embed_model=embedding, **settings
    ) as index:
        assert made == held_on_disk(index)
    assert 0 < before < len(logged(log)) == len(logged(alone)), "nothing was embedded twice"


def test_in_llama_index_on_ray(ray: Any, checkpoint: Path, tmp_path: Path) -> None:
    ingestion = pytest.importorskip("llama_index.ingestion.ray")
    store = ZStore(tmp_path / "store")
    compressor = load_checkpoint(checkpoint)
    pipeline = ingestion.RayIngestionPipeline(
        transformations=[
            ingestion.RayTransformComponent(
                transform_class=ZTokenTransform,
                transform_kwargs={
                    "compressor": compressor,
                    "store": store,
                    "embed_model": SlowEmbedding(),
                },
                map_batches_kwargs={"batch_size": 2, "num_cpus": 1},
            )
        ]
    )
    nodes = [TextNode(text=document.text) for document in documents(6)]
    found = pipeline.run(nodes=nodes)
    assert sorted(node.node_id for node in found) == sorted(node.node_id for node in nodes)
    texts = [node.text for node in nodes]
    assert store.resolve(compressor, texts)[1] == 0 and len(store) == 2 * len(set(texts))


# -- without a cluster


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(row_id("codes", str(n)), bytes([n] * 40)) for n in range(start, start + count)]


@pytest.mark.parametrize("harm", ["flip", "cut", "swap", "empty", "planted"])
def test_a_damaged_segment_does_not_count(tmp_path: Path, harm: str) -> None:
    one, other = write_segment(tmp_path, rows(4)), write_segment(tmp_path, rows(4, 4))
    assert [len(part) for part in read_segments(tmp_path)] == [4, 4]
    data = bytearray(one.read_bytes())
    data[len(data) // 2] ^= 4
    harmed = {
        "flip": bytes(data),
        "cut": one.read_bytes()[:-1],
        "swap": other.read_bytes(),
        "empty": b"",
        "planted": b"PAR1" * 20,
    }
    one.write_bytes(harmed[harm])
    assert [part for part in read_segments(tmp_path)] == [rows(4, 4)]
    assert not one.exists()
    write_segment(tmp_path, rows(4))
    assert sum(len(part) for part in read_segments(tmp_path)) == 8


def test_a_block_that_loses_its_worker_each_time_is_given_up(tmp_path: Path) -> None:
    class Lost(BaseException):
        pass

    def lose() -> None:
        with attempt(tmp_path, "block", 2):
            raise Lost

    for _ in range(2):
        with pytest.raises(Lost):
            lose()
    with pytest.raises(ZtokError, match="lost 2 times at one block"):
        lose()
    forget_attempts(tmp_path)
    with attempt(tmp_path, "block", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_workers_fit_the_cluster() -> None:
    assert RayEngine()._shape({"CPU": 16, "memory": 2**40}, False) == (4, 4)
    assert RayEngine()._shape({"CPU": 16, "memory": 2**32}, False) == (2, 4)
    assert RayEngine()._shape({"CPU": 16, "GPU": 2, "memory": 2**40}, True) == (2, 4)
    assert RayEngine(workers=2)._shape({"CPU": 2, "memory": 2**40}, False) == (2, 1)
    with pytest.raises(ZtokError, match="2 cores and 0 GPUs, too few for 3 workers of 1 cores"):
        RayEngine(workers=3, cores=1)._shape({"CPU": 2}, False)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ztok_rag.index.segments.os.fsync", full)
    with pytest.raises(ZtokError, match=r"No space left.*run again"):
        write_segment(tmp_path, rows(2))
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compressor: ZCompressor
) -> None:
    with pytest.raises(ZtokError, match=r"workers of a RayEngine must be at least 1, not 0"):
        RayEngine(workers=0)
    given = {"compressor": compressor, "embed_model": SlowEmbedding()}
    with pytest.raises(ZtokError, match=r"no engine 'spark'; give 'ray'"):
        ZTokenIndex.build(documents(2), tmp_path / "a", engine="spark", **given)
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(ZtokError, match=r"pip install ztok-rag\[ray\]"),
        ray_cluster(),
    ):
        pass


def test_workers_are_of_ray(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(BAKERY)
    command = ["index", str(tmp_path / "texts"), "--store", str(tmp_path / "index")]
    result = CliRunner().invoke(cli.app, [*command, "--workers", "2"])
    assert "--workers is of --ray" in str(result.exception)
    assert not (tmp_path / "index").exists()


def test_a_change_leaves_no_segments(checkpoint: Path, tmp_path: Path) -> None:
    """Segments of a build that was killed hold text that is deleted from the index meanwhile."""
    with build(checkpoint, tmp_path / "index", SlowEmbedding(), on_ray=False) as index:
        write_segment(tmp_path / "index" / ".segments", rows(2))
        index.delete_ref_doc("0.txt")
    assert not (tmp_path / "index" / ".segments").exists()
