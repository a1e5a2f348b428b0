"""Random nonsense in any field is accepted or refused in one sentence; nothing else happens.

``FUZZ=2000 pytest tests/test_fuzz.py`` is the full version.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from safetensors.torch import save
from torch import nn

from pipeline.cli import main
from pipeline.config.schema import Config
from pipeline.dataset.arrays import encode_array
from pipeline.dataset.plan import plan_of
from pipeline.dataset.records import parse_record
from pipeline.dataset.row_files import read_rows
from pipeline.dataset.signature import PAYLOAD_TYPE, payload_of
from pipeline.dataset.tar import Sample, decode_image, encode_image, read_tar, write_tar
from pipeline.errors import BadShardError, UserError
from pipeline.params import load_params, parse_params
from pipeline.storage import digest_bytes, json_bytes
from pipeline.synthesis.entries import Entry
from pipeline.teachers.networks import load_weights
from tests.conftest import Params, dataset

EXAMPLES = int(os.environ.get("FUZZ", "200"))
DEFAULTS: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parents[1] / "params.yaml")


def leaves(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every section and every key of the parameters."""
    inner = values.items() if isinstance(values, dict) else ()
    return [path, *(leaf for key, value in inner for leaf in leaves(value, (*path, key)))]


KEYS = [path for path in leaves(DEFAULTS) if path]
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -1, 0, 1]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(), st.dates())
NONSENSE = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.dates()), inner, max_size=4),
    ),
    max_leaves=6,
)


def assert_one_sentence(text: str) -> None:
    assert text.strip() and "\n" not in text.strip() and "Traceback" not in text
    assert "pydantic" not in text


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.sampled_from(KEYS), NONSENSE), min_size=1, max_size=2),
    extra=st.booleans(),
)
def test_any_value_in_any_field(
    changes: list[tuple[tuple[str, ...], Any]], extra: bool, tmp_path_factory: Any
) -> None:
    values = copy.deepcopy(DEFAULTS)
    for path, value in changes:
        section = values
        for key in path[:-1]:
            section = section[key] if isinstance(section.get(key), dict) else {}
        section[path[-1] + ("x" if extra else "")] = value
    try:
        config = parse_params(values, "params.yaml")
    except UserError as error:
        assert_one_sentence(str(error))
        return
    assert isinstance(config, Config)
    assert len(plan_of(config)) >= 1


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
def test_any_bytes_as_parameter_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert_one_sentence(str(caught.value))


COMMANDS = ["plan", "synthesize", "verify", "status", "distill", "evaluate", "summary"]
OPTIONS = ["--set", "--shards", "--params", "--agreement", "--repair", "--"]
VALUES = ["0:8", "8:0", "a=b", "teacher=", "nan", "-1"]
WORDS = st.one_of(
    st.sampled_from(COMMANDS + OPTIONS + VALUES),
    st.text(max_size=12).filter(lambda text: text not in ("-h", "--help")),
)


@settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(words=st.lists(WORDS, max_size=5))
def test_any_command_line(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an empty directory nothing can be right, and nothing may be made."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert list(tmp_path.iterdir()) == []
    if code == 0:  # no word, or a prefix of --help or --version
        assert out.startswith(("usage: ", "dreamshard "))
        return
    assert code == 2
    assert_one_sentence(err)


@settings(max_examples=EXAMPLES // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_to_a_tar(data: st.DataObject, tmp_path: Path) -> None:
    """Read whole, or refused by name: never another error, never a file written."""
    path = tmp_path / "000000.tar"
    pixels = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    with path.open("w+b") as file:
        write_tar(file, (Sample(f"{i:09d}", pixels, i, {"cls": i}) for i in range(3)))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        samples = list(read_tar(path))
    except BadShardError as error:
        assert_one_sentence(str(error))
    else:
        assert len(samples) <= 3
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=EXAMPLES // 10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_any_damage_to_a_checkpoint(data: st.DataObject, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.zeros(4, 2), "bias": torch.zeros(4)}
    torch.save(state, path) if suffix == ".pt" else path.write_bytes(save(state))
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        load_weights(nn.Linear(2, 4), path, "teacher")
    except UserError as error:
        assert_one_sentence(str(error))
    path.unlink()
    assert list(tmp_path.iterdir()) == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_sealed_record(data: st.DataObject, finished: Params) -> None:
    """A record with any value under any key, and a digest that fits, is a record or None."""
    text = (dataset(finished) / "metadata" / "000000.json").read_bytes()
    facts = json.loads(text)
    del facts["sha256"]
    facts[data.draw(st.sampled_from([*facts, "surplus"]))] = data.draw(JSON)
    record = parse_record(json_bytes({**facts, "sha256": digest_bytes(json_bytes(facts))}))
    if record is not None:
        entry = Entry.of(record, text)
        assert entry.images == record.images and entry.tar in record.files


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(["parquet", "npy", "png", "envelope"]))
def test_any_damage_to_a_file_that_is_read(
    data: st.DataObject, kind: str, finished: Params
) -> None:
    """Damaged rows, arrays, images and envelopes are refused by their own error, or read."""
    image = np.arange(192, dtype=np.uint8).reshape(3, 8, 8)
    sound = {
        "parquet": (dataset(finished) / "metadata" / "000000.parquet").read_bytes,
        "npy": lambda: encode_array(image),
        "png": lambda: encode_image(image),
        "envelope": lambda: json_bytes(
            {"payloadType": PAYLOAD_TYPE, "payload": "e30=", "signatures": [{"sig": "AAAA"}]}
        ),
    }
    damaged = bytearray(sound[kind]())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    given_bytes = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        if kind == "parquet":
            assert len(read_rows("rows", given_bytes, 12)[0]) == 12
        elif kind == "envelope":
            payload_of(given_bytes)
        else:
            decode_image(given_bytes)
    except (BadShardError, ValueError) as error:
        assert str(error)
