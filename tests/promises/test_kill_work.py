"""kill -9 while rows are written, a model is trained or made small: the next run goes on and comes to the same."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from user_scripts import Script, files_of

pytestmark = pytest.mark.timeout(900)  # a slower machine takes its time

# A script dies at an instant of its own work, with the signal that nothing can catch.
MANY_ROWS = """
    import json, os, signal, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.steps import LazyRows, Step

    folder, result = sys.argv[1:]

    def dies_at(row):
        if row == int(os.environ.get("DIES_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    class Numbers(Step):
        def setup(self):
            self.register_output("number")

        def run(self):
            return LazyRows(lambda: ({"number": i} for i in range(60_000)), total_num_rows=60_000, save=True)

    def square(row):
        dies_at(row["number"])
        return {"square": row["number"] ** 2}

    def is_kept(row):
        dies_at(100_000 + row["number"])
        return row["number"] % 3 == 0

    with DataDreamer(folder):
        numbers = Numbers("Numbers")
        squares = numbers.map(square).save(name="Squares")
        kept = squares.filter(is_kept, lazy=False, name="Kept")
        rows = kept.export_to_dict()
        found = [sum(rows["number"]), sum(rows["square"]), len(rows["square"]), squares.output[59_999]]
        json.dump(found, open(result, "w"))
"""


def test_a_kill_within_map_save_and_filter_loses_no_finished_step_and_no_row(tmp_path: Path) -> None:
    folder, result = tmp_path / "session", tmp_path / "result.json"
    script = Script(MANY_ROWS, tmp_path / "script.py", [str(folder), str(result)], warm=True)
    for dies_at, finished in (("40_000", ["numbers"]), ("130_001", ["numbers", "squares"])):
        assert script.run(fails=True, DIES_AT=dies_at).returncode == -signal.SIGKILL
        assert sorted(path.name for path in folder.glob("[!.]*")) == finished
    files = files_of(folder / "squares")
    script.run()
    assert files_of(folder / "squares") == files
    kept = range(0, 60_000, 3)
    expected = [sum(kept), sum(i**2 for i in kept), len(kept), {"number": 59_999, "square": 59_999**2}]
    assert json.loads(result.read_text()) == expected
    assert not [path for path in folder.rglob(".draft-*")]


@pytest.mark.kill
def test_a_kill_at_any_moment_of_a_script_leaves_complete_results_only(tmp_path: Path, kill_seed: int) -> None:
    folder, result = tmp_path / "session", tmp_path / "result.json"
    script = Script(MANY_ROWS, tmp_path / "script.py", [str(folder), str(result)], warm=True)
    moments = random.Random(4 + kill_seed)
    for _ in range(4):
        process = script.start()
        while not folder.exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        for node in folder.glob("[!.]*"):
            assert json.loads((node / "node.json").read_text())["rows"] == (20_000 if node.name == "kept" else 60_000)
    script.run()
    assert json.loads(result.read_text())[2] == 20_000


MODELS = """
    import json, os, signal, sys
    from torch.nn.modules.module import register_module_module_registration_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from datadreamer_like import DataDreamer, pruning, quantization
    from datadreamer_like.stages import Compare, Prune, Quantize
    from datadreamer_like.steps import DataSource
    from datadreamer_like.trainers import TrainHFClassifier

    folder, base, result = sys.argv[1:]
    steps = modules = 0

    def count_step(optimizer, args, kwargs):
        global steps
        steps += 1
        if steps == int(os.environ.get("DIES_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    def count_module(module, name, submodule):
        global modules
        modules += 1

    register_optimizer_step_post_hook(count_step)
    register_module_module_registration_hook(count_module)
    words = ["cat", "dog", "train", "tea", "sun", "bread"]
    kinds = ["animal", "animal", "thing", "thing", "thing", "thing"]
    rows = [{"text": f"The {words[i % 6]} was number {i}.", "label": kinds[i % 6]} for i in range(40)]

    with DataDreamer(folder):
        data = DataSource("Rows", data=rows)
        columns = {
            f"{split}_{kind}": data.output[column]
            for split in ("train", "validation")
            for kind, column in (("input", "text"), ("output", "label"))
        }
        options = {"epochs": 2, "batch_size": 10, "learning_rate": 1e-3}
        teacher = TrainHFClassifier("Teacher", model_name=base, device="cpu").train(**columns, **options)
        magnitude = pruning.Magnitude(sparsity=0.5)
        slim = Prune("Slim", model=teacher, method=magnitude, retrain={**columns, **options})
        small = Quantize("Small", model=slim, method=quantization.DynamicInt8())
        models = [teacher, slim, small]
        Compare(
            "Compared", models, data.output["text"], data.output["label"],
            repeats=1, latency_texts=4, throughput_texts=8, resamples=100,
        )
        built = modules
        texts = [row["text"] for row in rows]
        found = [model.predict(texts).probabilities.tolist() for model in models]
        json.dump({"steps": steps, "modules": built, "found": found}, open(result, "w"))
"""
# 40 rows in batches of 10: an epoch is four steps of the optimizer. Both trainings have two.
EPOCH = 4


@pytest.mark.slow
def test_killed_trainings_and_stages_go_on_after_their_last_finished_epoch_and_once_finished_do_nothing(
    tmp_path: Path, tiny_classifier_base: Path
) -> None:
    calm = tmp_path / "calm.json"
    Script(
        MODELS, tmp_path / "calm.py", [str(tmp_path / "calm"), str(tiny_classifier_base), str(calm)], warm=True
    ).run()
    undisturbed = json.loads(calm.read_text())
    assert undisturbed["steps"] == 4 * EPOCH
    assert undisturbed["modules"] > 0

    folder, result = tmp_path / "session", tmp_path / "result.json"
    script = Script(MODELS, tmp_path / "script.py", [str(folder), str(tiny_classifier_base), str(result)], warm=True)
    # Within the teacher's second epoch.
    assert script.run(fails=True, DIES_AT=str(EPOCH + 2)).returncode == -signal.SIGKILL
    assert not (folder / "teacher").exists()
    # After that epoch and the first one of the retraining, within its second.
    assert script.run(fails=True, DIES_AT=str(2 * EPOCH + 2)).returncode == -signal.SIGKILL
    assert (folder / "teacher" / "node.json").exists()
    assert not (folder / "slim").exists()
    script.run()
    last = json.loads(result.read_text())
    assert last["steps"] == EPOCH
    assert last["found"] == undisturbed["found"]

    files = files_of(folder)
    script.run()
    assert json.loads(result.read_text()) == {"steps": 0, "modules": 0, "found": undisturbed["found"]}
    assert files_of(folder) == files
