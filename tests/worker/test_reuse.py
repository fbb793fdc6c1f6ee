"""What workers know of the content of names, and what they share by it."""

import json
from dataclasses import replace

import pytest
import worker_stubs

from qb_cluster.catalog.content import cell_key, scheme_digest
from qb_cluster.contracts import (
    Artifact,
    ArtifactFacts,
    Bits,
    Calibration,
    Ref,
    Task,
)
from qb_cluster.nodes.cores import available_cores
from qb_cluster.nodes.environment import fingerprint
from qb_cluster.worker import Worker
from qb_cluster.worker.artifact_cache import ArtifactCache
from qb_cluster.worker.keeper import Keeper, Kept

CORES = available_cores()[:1]
FLOAT = replace(worker_stubs.FLOAT, model=Ref("m", "worker_stubs:shifting"))
W4 = replace(
    FLOAT,
    cell_id="quantized",
    scheme=Ref("weight_only", "weight_only"),
    bits=Bits(4),
    simulator=Ref("sim", "worker_stubs:Stub"),
)
STATIC = replace(
    W4, scheme=Ref("static", "static"), bits=Bits(4, 8), calibration=Calibration(samples=5)
)


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setattr(worker_stubs, "CALLS", [])
    monkeypatch.setattr(worker_stubs, "SHIFT", [0.0])


@pytest.fixture
def cache(tmp_path):
    return ArtifactCache(tmp_path / "cache", 2**20, worth_keeping_ns=0)


@pytest.fixture
def worker(tmp_path):
    """Give a new worker of some run, with its memory empty."""

    def worker(cache=None, run="run"):
        return Worker(tmp_path / run, cache or ArtifactCache(tmp_path / "off", 0))

    return worker


def quality(worker, cell, baseline=None):
    outcome = worker.run(Task(cell, "quality", 1, CORES, baseline))
    assert outcome.status == "ok", outcome.traceback
    return outcome


def test_a_content_stage_says_what_the_baseline_found_and_what_changed_since(worker):
    baseline = quality(worker(), FLOAT)
    outcome = worker().run(Task(FLOAT, "content", 1, CORES))
    assert outcome.status == "ok"
    assert outcome.quality is None
    assert outcome.content == baseline.quality.content
    worker_stubs.SHIFT[0] = 1.0
    changed = worker().run(Task(FLOAT, "content", 1, CORES)).content
    assert changed.changes(outcome.content) == ["model", "dataset"]


def test_a_content_stage_that_fails_says_why(worker):
    missing = replace(FLOAT, model=Ref("m", "worker_stubs:not_there"))
    outcome = worker().run(Task(missing, "content", 1, CORES))
    assert (outcome.status, outcome.content) == ("failed", None)
    assert "not_there" in outcome.error


def test_stages_leave_the_key_of_their_content(worker):
    running = worker()
    baseline = quality(running, FLOAT)
    content = baseline.quality.content
    assert baseline.values["content_key"] == cell_key(FLOAT, content, "float", None)
    outcome = quality(running, W4, baseline.quality)
    scheme = scheme_digest(W4.scheme)
    assert outcome.quality.content is None
    assert outcome.values["content_key"] == cell_key(W4, content, scheme, None)
    timed = running.run(Task(W4, "latency", 1, CORES, baseline.quality, outcome.quality))
    assert timed.values["content_key"] == cell_key(W4, content, scheme, fingerprint())


def test_a_cell_that_fails_has_a_key_too_and_one_of_an_old_journal_has_none(worker):
    running = worker()
    baseline = quality(running, FLOAT).quality
    broken = replace(W4, backend=Ref("b", "worker_stubs:Stub", '{"what":"float"}'))
    outcome = running.run(Task(broken, "quality", 1, CORES, baseline))
    assert (outcome.status, bool(outcome.values["content_key"])) == ("not_applied", True)
    assert "content_key" not in quality(running, W4, replace(baseline, content=None)).values


def test_a_dataset_that_changes_while_the_sweep_runs_is_an_error(worker):
    baseline = quality(worker(), FLOAT).quality
    worker_stubs.SHIFT[0] = 1.0
    outcome = worker().run(Task(W4, "quality", 1, CORES, baseline))
    assert outcome.status == "failed"
    assert "dataset 'd' changed while the sweep ran" in outcome.error


def test_so_is_a_model_that_loads_differently(worker):
    names = {
        "dataset": Ref("d", "worker_stubs:still_points"),
        "backend": Ref("b", "worker_stubs:Stub", '{"what":"from the model"}'),
    }
    baseline = quality(worker(), replace(FLOAT, **names)).quality
    worker_stubs.SHIFT[0] = 1.0
    outcome = worker().run(Task(replace(W4, **names), "quality", 1, CORES, baseline))
    assert outcome.status == "failed"
    assert "model 'm' changed while the sweep ran" in outcome.error


def test_a_row_lists_what_its_stage_found_ready(worker, cache):
    running = worker(cache)
    baseline = quality(running, FLOAT)
    assert baseline.values["reused"] is None
    assert quality(running, W4, baseline.quality).values["reused"] == [
        "model",
        "dataset",
        "baseline",
    ]
    again = worker(cache)
    second = quality(again, FLOAT)
    assert second.values["reused"] == ["artifact"]
    found = quality(again, W4, second.quality).values["reused"]
    assert found == ["model", "dataset", "baseline", "artifact", "twin"]


def test_an_artifact_is_made_once_for_all_sweeps_and_says_what_it_cost(worker, cache):
    running = worker(cache, "one")
    baseline = quality(running, FLOAT).quality
    first = quality(running, STATIC, baseline)
    made = list(worker_stubs.CALLS)
    other = worker(cache, "two")
    labels = {"sweep": "another", "model": Ref("other label", FLOAT.model.target)}
    again = quality(other, replace(STATIC, **labels), quality(other, FLOAT).quality)
    assert made == worker_stubs.CALLS
    assert again.values["prepare_ns"] == first.values["prepare_ns"]
    assert again.quality.artifact == first.quality.artifact


CHANGES = {
    "bits": replace(STATIC, bits=Bits(3, 8)),
    "execution": replace(STATIC, execution="simulated"),
    "samples": replace(STATIC, calibration=Calibration(samples=6)),
    "seed": replace(STATIC, calibration=Calibration(samples=5, seed=1)),
    "observer": replace(STATIC, calibration=Calibration(samples=5, observer="mse")),
    "percentile": replace(STATIC, calibration=Calibration(samples=5, percentile=99.0)),
    "scheme": replace(STATIC, scheme=Ref("static", "static", '{"symmetric":false}')),
    "backend": replace(STATIC, backend=Ref("b", "worker_stubs:Stub", '{"what":"nothing"}')),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_decides_an_artifact_makes_another(worker, cache, what):
    running = worker(cache)
    baseline = quality(running, FLOAT).quality
    quality(running, replace(STATIC, simulator=None), baseline)
    asked = replace(CHANGES[what], simulator=None)
    baseline = quality(running, replace(FLOAT, backend=asked.backend)).quality
    assert "artifact" not in quality(running, asked, baseline).values["reused"]


def test_a_simulation_is_no_native_artifact_of_the_same_backend(worker, cache):
    running = worker(cache)
    native = replace(STATIC, simulator=STATIC.backend)
    quality(running, native, quality(running, FLOAT).quality)
    made = [call for call in worker_stubs.CALLS if call.startswith("quantize")]
    assert sorted(made) == ["quantize native", "quantize simulated"]


def test_other_weights_make_another_artifact_under_the_same_name(worker, cache):
    quality(worker(cache), FLOAT)
    worker_stubs.SHIFT[0] = 1.0
    assert quality(worker(cache), FLOAT).values["reused"] is None


def test_failures_are_never_cached(worker, cache, monkeypatch):
    running = worker(cache)
    baseline = quality(running, FLOAT).quality
    with monkeypatch.context() as patch:
        patch.setattr(worker_stubs.Stub, "quantize", lambda *_: 1 / 0)
        assert running.run(Task(W4, "quality", 1, CORES, baseline)).status == "failed"
    assert "artifact" not in quality(running, W4, baseline).values["reused"]


def test_backends_that_run_one_model_share_a_twin_to_the_bit(worker):
    running = worker()
    for what in ("right", "also right"):
        backend = Ref(what, "worker_stubs:Stub", json.dumps({"what": what}))
        baseline = quality(running, replace(FLOAT, backend=backend)).quality
        quality(running, replace(W4, backend=backend), baseline)
    assert worker_stubs.CALLS.count("quantize simulated") == 1


ARTIFACT = Artifact(b"bytes\nwith a line", "bin", ArtifactFacts(10, 40, 5, ("a note",)))


def test_a_cache_gives_back_what_was_put(cache):
    assert cache.get("key") is None
    cache.put("key", ARTIFACT, 7)
    assert cache.get("key") == (ARTIFACT, 7)


@pytest.mark.parametrize("damage", [b"", b"{}\nx", b"[]\n", b"no json", None])
def test_a_damaged_file_is_no_artifact_and_is_written_anew(cache, tmp_path, damage):
    cache.put("key", ARTIFACT, 7)
    path = tmp_path / "cache" / "key"
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert cache.get("key") is None
    cache.put("key", ARTIFACT, 8)
    assert cache.get("key") == (ARTIFACT, 8)


def test_the_least_recently_used_go_when_the_folder_is_full(tmp_path):
    cache = ArtifactCache(tmp_path, 10_000, worth_keeping_ns=0)
    large = replace(ARTIFACT, data=b"x" * 2_500)
    for name in "abc":
        cache.put(name, large, 1)
    assert cache.get("a")
    for name in "de":
        cache.put(name, large, 1)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    assert cache.get("a")
    assert cache.get("b") is None


def test_what_is_made_in_no_time_is_not_kept(tmp_path):
    cache = ArtifactCache(tmp_path / "cache", 10_000, worth_keeping_ns=100)
    cache.put("key", ARTIFACT, 99)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_fails_no_cell(worker, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    blocked = ArtifactCache(tmp_path / "file" / "cache", 10_000, worth_keeping_ns=0)
    running = worker(blocked)
    quality(running, W4, quality(running, FLOAT).quality)
    assert len(caplog.records) == 1
    assert "not cached" in caplog.text


@pytest.mark.parametrize(("limit", "is_on"), [("0", False), ("100000", True), ("", True)])
def test_the_user_sets_folder_and_limit(monkeypatch, tmp_path, limit, is_on):
    monkeypatch.setenv("QB_CACHE", str(tmp_path))
    monkeypatch.setenv("QB_CACHE_BYTES", limit)
    cache = ArtifactCache.of_user()
    cache.put("key", ARTIFACT, 10**9)
    assert (cache.get("key") is not None) == is_on == (tmp_path / "artifacts" / "key").exists()


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [((4, 4, 1), "abc"), ((4, 4, 4), "bc"), ((4, None), "b"), ((None, 4), "b"), ((11, 1), "b")],
)
def test_a_keeper_keeps_all_that_fit_and_a_large_one_alone(sizes, kept):
    of_name = dict(zip("abc", sizes, strict=False))
    keeper = Keeper(lambda ref: Kept(ref.label, "digest", of_name[ref.label]), most_bytes=10)
    for name in of_name:
        assert keeper.get(Ref(name, name)).value == name
    assert "".join(name for name in of_name if Ref(name, name) in keeper) == kept


def test_a_keeper_lets_go_of_what_was_used_longest_ago():
    keeper = Keeper(lambda ref: Kept(ref.label, "digest", 4), most_bytes=10)
    for name in "abac":
        keeper.get(Ref(name, name))
    assert [name for name in "abc" if Ref(name, name) in keeper] == ["a", "c"]
