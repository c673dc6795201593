from .fake_embedder import FakeEmbedder as FakeEmbedder
from .fake_llm import FakeLLM as FakeLLM
from .faults import Fault as Fault
from .faults import WithFaults as WithFaults
from .recorded import Recorded as Recorded
from .session import temporary_session as temporary_session
