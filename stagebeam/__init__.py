"""stagebeam: a decoding engine for vision-language models that reason in stages."""

from stagebeam.engine.async_engine import AsyncEngine
from stagebeam.engine.engine import Engine
from stagebeam.engine.outputs import Answer, GenerateOutput
from stagebeam.engine.params import JudgeParams, SamplingParams, SearchParams, SwiresParams
from stagebeam.engine.stages import JudgePrompts, Stage, StagePlan

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncEngine",
    "Engine",
    "GenerateOutput",
    "JudgeParams",
    "JudgePrompts",
    "SamplingParams",
    "SearchParams",
    "Stage",
    "StagePlan",
    "SwiresParams",
]
