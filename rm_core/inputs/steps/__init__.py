"""Step formats: one file each, and the table by which an encoder finds them."""

from __future__ import annotations

from collections.abc import Mapping

from rm_core.config import StepFormat
from rm_core.inputs.steps.base import StepFormatBase
from rm_core.inputs.steps.math_shepherd import MathShepherdFormat
from rm_core.inputs.steps.qwen_math import QwenMathFormat
from rm_core.inputs.steps.rlhflow import RlhflowFormat
from rm_core.inputs.steps.skywork import PRMBenchFormat, SkyworkFormat

STEP_FORMATS: Mapping[StepFormat, type[StepFormatBase]] = {
    step_format.name: step_format
    for step_format in (
        SkyworkFormat,
        QwenMathFormat,
        MathShepherdFormat,
        RlhflowFormat,
        PRMBenchFormat,
    )
}
