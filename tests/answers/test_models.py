"""Models of the package: found by name, small, and as their cards say."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from samples import small_dataset

from gpattern_bench import Evaluator, load_dataset
from gpattern_bench.answers.card import read_card, read_cards
from gpattern_bench.errors import MethodError
from gpattern_bench.methods.predict import predict_cells
from gpattern_bench.runs.label import load_classifier
from gpattern_bench.runs.pretrained import PRETRAINED, pretrained_folder, pretrained_names
from gpattern_bench.runs.saved_model import find_model, load_model, model_sha256, save_model

FOUR, COSMX = "gpsnet-four-patterns", "gpsnet-cosmx"
CARD = json.loads((PRETRAINED / FOUR / "card.json").read_text())


def test_there_are_few_and_each_has_one_weight_file():
    assert pretrained_names() == (COSMX, FOUR)
    for name in pretrained_names():
        assert len(list((PRETRAINED / name).glob("*.safetensors"))) == 1
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*.*")) < 2_000_000


@pytest.mark.parametrize("name", [FOUR, COSMX])
def test_the_card_and_the_model_agree(name):
    card, (method, model) = read_card(PRETRAINED / name), load_model(name)
    assert method.about.name == model.method == "gpsnet"
    assert list(card.thresholds) == model.patterns
    assert card.thresholds == model.thresholds
    assert model.seed == card.raw["seed"] == 0
    assert {part["dataset"] for part in card.raw["trained_on"]} == set(model.fitted_on)
    assert card.scope.area_um2[0] < card.scope.area_um2[1]
    for key in ("for", "chosen_on", "recipe_scores", "known_failures", "licence", "made_by"):
        assert card.raw[key]


@pytest.mark.trained
@pytest.mark.slow
def test_the_weights_score_what_the_card_says():
    synthetic = load_dataset("synthetic")
    method, _ = load_model(FOUR)
    scores = predict_cells(method, synthetic.iter_cells("test"))
    found = Evaluator(synthetic).eval(scores, replicates=0)
    [told] = [
        row for row in read_card(PRETRAINED / FOUR).raw["scores"] if "synthetic@" in row["dataset"]
    ]
    assert found["n"] == told["pairs"]
    for metric in ("auc_macro", "f1_macro"):
        assert found[metric] == pytest.approx(told[metric], abs=2e-4)


class TestByName:
    def test_wherever_a_model_is_taken(self):
        assert find_model(FOUR) == pretrained_folder(FOUR) == PRETRAINED / FOUR
        assert load_classifier(FOUR).about(1.0).sha256 == model_sha256(PRETRAINED / FOUR)

    def test_a_folder_of_that_name_is_meant_before_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save_model(*load_model(COSMX), tmp_path / FOUR)
        assert load_model(FOUR)[1].patterns == ["cytoplasmic", "membrane", "nuclear"]
        assert load_classifier(FOUR).patterns == ("cytoplasmic", "membrane", "nuclear")

    def test_an_unknown_name_lists_them(self):
        for load in (load_model, load_classifier):
            with pytest.raises(MethodError, match=f"of the package: {COSMX}, {FOUR}"):
                load("gpsnet-nothing")

    def test_predict_takes_it(self, command, tmp_path):
        tables, out = small_dataset(tmp_path), tmp_path / "scores.parquet"
        code, _, err = command("predict", tables.folder, "--model", FOUR, "--out", out)
        assert code == 0, err
        assert len(pd.read_parquet(out)) == tables.counts["pairs"]


class TestCards:
    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"min_molecules": 0}, "min_molecules"),
            ({"thresholds": {}}, "thresholds are of no pattern"),
            ({"rates": {"nuclear": {"sensitivity": 2, "specificity": 1}}}, "sensitivity"),
            ({"patterns": [*CARD["patterns"], "nuclear"]}, "calibration are of"),
            ({"thresholds": CARD["thresholds"] | {"nuclear": float("nan")}}, "thresholds.nuclear"),
            ({"thresholds": CARD["thresholds"] | {"nuclear": 5}}, "thresholds.nuclear"),
            ({"scope": CARD["scope"] | {"area_um2": [float("nan")] * 2}}, "a finite number"),
            ({"scope": CARD["scope"] | {"area_um2": [9, 1]}}, "the smaller number first"),
            ({"calibration": {"slopes": {"a": -1.0}, "intercepts": {"a": 0.0}}}, "positive slope"),
        ],
    )
    def test_a_damaged_one_is_refused(self, tmp_path, changed, text):
        (tmp_path / "card.json").write_text(json.dumps(CARD | changed))
        with pytest.raises(MethodError, match=text):
            read_card(tmp_path)

    def test_what_cannot_be_read_is_not_taken_for_none(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "card.json").write_text("[" * 100_000)
        (tmp_path / "folder" / "card.json").mkdir(parents=True)
        for name in ("deep", "folder"):
            with pytest.raises(MethodError, match="no readable card"):
                read_card(tmp_path / name)
        assert read_card(tmp_path) is None

    def test_models_lists_them(self, command):
        code, out, _ = command("models")
        assert code == 0
        assert all(f"{card.name}: {card.title}" in out for card in read_cards())
        code, out, _ = command("models", "--json")
        assert [card["name"] for card in json.loads(out)] == [COSMX, FOUR]
