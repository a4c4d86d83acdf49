"""`import prismatic` costs nothing, and transformers' Auto classes know the models all the same."""

import subprocess
import sys
from operator import attrgetter

import pytest
from golden_cases import ROOT

LATER = """
import gc
gc.disable()  # a quarter of the time that importing takes
import sys
import prismatic
assert not {"torch", "transformers", "timm", "numpy"} & set(sys.modules), "importing it brings others along"
from transformers import AutoConfig
config = AutoConfig.for_model("prismatic")
assert type(config) is prismatic.PrismaticConfig and "timm" not in sys.modules
"""
LOOKED_UP = """
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
import prismatic
key = prismatic.PrismaticConfig
assert AutoModelForImageTextToText._model_mapping[key] is prismatic.PrismaticForConditionalGeneration
assert PROCESSOR_MAPPING[key] is prismatic.PrismaticProcessor
assert IMAGE_PROCESSOR_MAPPING[key]["pil"] is prismatic.PrismaticImageProcessor
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [LATER + LOOKED_UP, LOOKED_UP], ids=["ours first", "theirs first"])
def test_auto_classes_know_the_models_whoever_is_imported_first(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_names_of_the_package():
    import prismatic

    assert set(prismatic.__all__) <= set(dir(prismatic))
    assert all(getattr(prismatic, name).__name__ == name for name in prismatic.__all__)
    with pytest.raises(AttributeError, match="module 'prismatic' has no attribute 'laod'"):
        attrgetter("laod")(prismatic)
