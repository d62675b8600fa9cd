from pathlib import Path

from benchmarks.peers import install
from benchmarks.peers.catalogue import PEERS


def test_every_peer_has_a_server_and_pinned_requirements() -> None:
    assert {peer.folder for peer in PEERS} == set(install.NAMES)
    for peer in PEERS:
        source = install.FOLDER / peer.folder / "server.py"
        compile(source.read_text(encoding="utf-8"), source, "exec")
        lines = install.requirements(peer.folder).read_text().splitlines()
        unpinned = [line for line in lines if not line.startswith("#") and "==" not in line]
        assert not unpinned
        assert install.version_of(peer.folder, peer.package)


def test_peers_run_the_same_file_with_the_same_threads() -> None:
    settings = [peer.server(Path("models/byola"), "int8") for peer in PEERS]
    assert len({server.environment["PEER_MODEL"] for server in settings}) == 1
    assert {server.environment["PEER_PRECISION"] for server in settings} == {"int8"}
    assert {server.environment["OPENBLAS_NUM_THREADS"] for server in settings} == {"1"}
    assert len({(server.name, server.command) for server in settings}) == len(
        {(peer.folder, peer.variant) for peer in PEERS}
    )
