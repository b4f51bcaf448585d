"""What users may rely on, and what an install on a rig must not need."""

import subprocess
import sys

import neurodeploy_runtime

NAMES = """
ArraySource Axis Box Bundle BundleError BundleWriter CancelledError DeviceError Engine
EngineError EngineSettings Golden Histogram InputError LiveSegmenter LiveSettings
MemoryCapError ModelSpec OverrunError
NeurodeployError Normalisation NumpyEngine OutputError Progress ReadError Report
RequestError ResumeError RunError SegmentSettings Segmenter SettingsError Shape Sink
SkipSettings Source StreamError TilePlan WriteError as_begun choose_engine create_sink
default_bundle_path load_bundle open_engine open_volume ingest IngestReport reproduce
Reproduction
"""


def test_the_public_names_are_these() -> None:
    assert sorted(neurodeploy_runtime.__all__) == sorted(NAMES.split())
    assert all(hasattr(neurodeploy_runtime, name) for name in NAMES.split())


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "timm", "onnx", "tensorstore", "h5py"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def test_the_runtime_segments_where_torch_cannot_be_imported() -> None:
    code = BLOCKED + (
        "import numpy as np\n"
        "from neurodeploy_runtime import Segmenter, SegmentSettings, EngineSettings\n"
        "s = SegmentSettings(engine=EngineSettings(engine='onnxruntime'))\n"
        "noise = np.random.default_rng(0).integers(90, 110, (8, 40, 40), np.uint16)\n"
        "with Segmenter(settings=s) as segmenter:\n"
        "    print(segmenter.segment_array(noise).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(8, 40, 40)", done.stderr


def test_importing_the_runtime_is_light() -> None:
    """NumPy is most of it: no engine, no TIFF library, no codec is imported."""
    code = (
        "import sys, neurodeploy_runtime\n"
        "heavy = {'torch', 'onnxruntime', 'openvino', 'tifffile', 'imagecodecs',\n"
        "         'scipy', 'tensorstore', 'h5py', 'rich', 'click'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_costs_less_than_three_times_numpy() -> None:
    """By instructions executed in Python, which a busy machine does not change."""
    code = (
        "import sys\n"
        "count = 0\n"
        "def trace(frame, event, arg):\n"
        "    global count\n"
        "    count += 1\n"
        "sys.setprofile(trace)\n"
        "import {module}\n"
        "sys.setprofile(None)\n"
        "print(count)\n"
    )
    calls = {
        module: int(
            subprocess.run(
                [sys.executable, "-c", code.format(module=module)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for module in ("numpy", "neurodeploy_runtime")
    }
    assert calls["neurodeploy_runtime"] < 3 * calls["numpy"]
