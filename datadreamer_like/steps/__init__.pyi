from .background import concurrent as concurrent
from .background import wait as wait
from .base import Step as Step
from .base import SuperStep as SuperStep
from .csv_source import CSVDataSource as CSVDataSource
from .data_from_attributed_prompt import DataFromAttributedPrompt as DataFromAttributedPrompt
from .data_from_prompt import DataFromPrompt as DataFromPrompt
from .data_source import DataSource as DataSource
from .data_source import HFDatasetDataSource as HFDatasetDataSource
from .decorated import step as step
from .derived import concat as concat
from .derived import zipped as zipped
from .embed import CosineSimilarity as CosineSimilarity
from .embed import Embed as Embed
from .few_shot_prompt import FewShotPrompt as FewShotPrompt
from .few_shot_with_retrieval import FewShotPromptWithRetrieval as FewShotPromptWithRetrieval
from .filter_with_prompt import FilterWithPrompt as FilterWithPrompt
from .hub_source import HFHubDataSource as HFHubDataSource
from .json_source import JSONDataSource as JSONDataSource
from .judge_pairs import JudgeGenerationPairsWithPrompt as JudgeGenerationPairsWithPrompt
from .judge_pairs import JudgePairsWithPrompt as JudgePairsWithPrompt
from .process_with_prompt import ProcessWithPrompt as ProcessWithPrompt
from .prompt import Prompt as Prompt
from .rag_prompt import RAGPrompt as RAGPrompt
from .rank_with_prompt import RankWithPrompt as RankWithPrompt
from .retrieve import Retrieve as Retrieve
from .run_task_model import RunTaskModel as RunTaskModel
from .step_output import LazyRowBatches as LazyRowBatches
from .step_output import LazyRows as LazyRows
from .text_source import TextDataSource as TextDataSource

__all__ = [
    "CSVDataSource",
    "CosineSimilarity",
    "DataFromAttributedPrompt",
    "DataFromPrompt",
    "DataSource",
    "Embed",
    "FewShotPrompt",
    "FewShotPromptWithRetrieval",
    "FilterWithPrompt",
    "HFDatasetDataSource",
    "HFHubDataSource",
    "JSONDataSource",
    "JudgeGenerationPairsWithPrompt",
    "JudgePairsWithPrompt",
    "LazyRowBatches",
    "LazyRows",
    "ProcessWithPrompt",
    "Prompt",
    "RAGPrompt",
    "RankWithPrompt",
    "Retrieve",
    "RunTaskModel",
    "Step",
    "SuperStep",
    "TextDataSource",
    "concat",
    "concurrent",
    "step",
    "wait",
    "zipped",
]
