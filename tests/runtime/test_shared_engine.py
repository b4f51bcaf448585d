"""Streams may share an engine: none takes the answer of another."""

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    EngineSettings,
    Normalisation,
    Segmenter,
    SegmentSettings,
    load_bundle,
    open_engine,
)

MakeBundle = Callable[..., Bundle]
ENGINES = [n for n in ("onnxruntime", "openvino") if find_spec(n) is not None]


def asked_of(name: Any, threads: int = 1) -> EngineSettings:
    return EngineSettings(engine=name, device="cpu", threads=threads)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_engine_answers_each_thread_its_own_question(
    name: str, threads: int
) -> None:
    bundle = load_bundle()
    asked = asked_of(name, threads)
    rng = np.random.default_rng(0)
    with open_engine(bundle, asked) as engine:
        questions = [
            rng.normal(size=engine.input_shape).astype(np.float32) for _ in range(4)
        ]
        alone = []
        for question in questions:
            answer = np.empty(engine.output_shape, np.float32)
            engine.infer(question, answer)
            alone.append(answer)
        wrong: list[int] = []
        failed: list[BaseException] = []

        def ask(number: int) -> None:
            answer = np.empty(engine.output_shape, np.float32)
            try:
                for _ in range(6):
                    engine.infer(questions[number], answer)
                    if not np.array_equal(answer, alone[number]):
                        wrong.append(number)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    assert wrong == []


@pytest.mark.parametrize("name", ENGINES)
def test_two_volumes_are_streamed_side_by_side(
    make_identity_bundle: MakeBundle, name: str
) -> None:
    asked = asked_of(name)
    settings = SegmentSettings(
        engine=asked,
        output_kind="probability",
        normalisation=Normalisation("unit", 0.0, 255.0),
    )
    rng = np.random.default_rng(1)
    volumes = [rng.integers(0, 256, (40, 60, 60), np.uint8) for _ in range(2)]
    with Segmenter(make_identity_bundle(), settings) as segmenter:
        streams = [segmenter.stream(ArraySource(v), planes=8) for v in volumes]
        pairs = list(zip(*streams, strict=True))
    for number, volume in enumerate(volumes):
        found = np.concatenate([pair[number][1] for pair in pairs])
        np.testing.assert_array_equal(found, volume)
