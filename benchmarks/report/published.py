"""Published figures of GPT-2 small beside what was measured here: nothing, without its weights."""

from dataclasses import dataclass
from typing import Final

from huggingface_hub import try_to_load_from_cache

MODEL: Final = "openai-community/gpt2"


@dataclass(frozen=True)
class Published:
    """One figure of a paper."""

    task: str
    figure: str
    value: float
    protocol: str
    source: str


ROWS: Final = (
    Published("IOI", "mean logit difference", 3.56, "100k prompts, no BOS", "2211.00593"),
    Published("IOI", "26 heads alone, |F(M) - F(C)|", 0.46, "mean ablation, p_ABC", "2211.00593"),
    Published("IOI", "edge area, ACDC, KL", 0.869, "resample, 1041 edges true", "2304.14997"),
    Published("IOI", "node area, ACDC, KL", 0.880, "resample, 26 heads true", "2304.14997"),
    Published("IOI", "edge area, HISP, KL", 0.789, "resample", "2304.14997"),
    Published("IOI", "node area, discrete SAE", 0.854, "26 heads, 11.3 for 9.0", "2405.12522"),
    Published("IOI", "CMD, EAP-IG-inputs", 0.03, "MIB, S2 → IO", "2504.13151"),
    Published("IOI", "CPR, EAP-IG-inputs", 1.85, "MIB, S2 → IO", "2504.13151"),
    Published("greater-than", "probability difference", 0.817, "eos in front", "2305.00586"),
    Published("greater-than", "circuit's probability difference", 0.727, "YY → 01", "2305.00586"),
    Published("greater-than", "complement's", -0.366, "YY → 01", "2305.00586"),
    Published("greater-than", "edge area, ACDC, KL", 0.853, "262 edges true", "2304.14997"),
    Published("docstring", "edge area, ACDC, KL", 0.982, "attn-only-4l, 37 edges", "2304.14997"),
    Published("gendered pronoun", "logit difference", 4.73, '"That person"', "2403.17806"),
    Published("numerals", "circuit's share of the metric", 0.81, "mean, randDS", "2311.04131"),
    Published("number words", "circuit's share of the metric", 0.811, "mean, randDS", "2311.04131"),
)


def measured_here() -> str:
    """Return what stands in the column of our figures."""
    present = isinstance(try_to_load_from_cache(MODEL, "config.json"), str)
    return "not run" if present else "weights not present"
