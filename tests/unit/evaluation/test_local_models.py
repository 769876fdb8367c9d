"""Evaluations with tiny models of every kind, against plain transformers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
import torch
from checkpoints import SPECS, PathOf, build_tokenizer
from PIL import Image
from reference import Reference
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)
from vision import build_vision_model

from rm_core.benchmarks.registry import build_benchmark
from serve.errors import EvaluationError
from serve.evaluation.command import EvalRequest, evaluate_models
from serve.jobs.command import ExecutorOptions

JUDGE_TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def step_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Skywork-o1-Open-PRM with random weights."""
    folder = tmp_path_factory.mktemp("models") / "step"
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=len(tokenizer) + 8, tie_word_embeddings=True, **SIZES)
    weights = Qwen2ForCausalLM(config).state_dict()
    del weights["lm_head.weight"]
    weights["v_head.summary.weight"] = torch.randn(1, 32)
    weights["v_head.summary.bias"] = torch.tensor([0.1])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    content = config.to_dict() | {"architectures": ["Qwen2ForPrmModel"]}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "judge"
    tokenizer = build_tokenizer(SPECS["llama-v0.1"])
    tokenizer.chat_template = JUDGE_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class PlainStepModel:
    """Rewards at the last tokens of pieces, each tokenized alone, after a problem."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = Qwen2Model.from_pretrained(folder, dtype=torch.float32).eval()
        weights = load_file(folder / "model.safetensors")
        self._head = weights["v_head.summary.weight"], weights["v_head.summary.bias"]

    def __call__(
        self, problem: str, pieces: Sequence[tuple[str, bool]], marker: str
    ) -> list[float]:
        """Score pieces of text, each followed by the marker; the flag tells which to return."""
        encode = self._tokenizer.encode
        ids = encode(f"{self._tokenizer.bos_token}{problem}\n", add_special_tokens=False)
        readouts = []
        for text, is_read in pieces:
            ids += encode(text, add_special_tokens=False) if text else []
            ids.append(encode(marker, add_special_tokens=False)[-1])
            if is_read:
                readouts.append(len(ids) - 1)
        with torch.no_grad():
            hidden = self._model(torch.tensor([ids])).last_hidden_state[0]
            values = torch.sigmoid(hidden @ self._head[0].T + self._head[1])[:, 0]
        self.num_within_512 = sum(index < 512 for index in readouts)
        return values[readouts].tolist()


def evaluate(
    name: str,
    folder: Path,
    output: Path,
    rows: benchmark_files.RowsOf,
    *,
    code: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Evaluate a model on the CPU; return the scored items with the lines of `scores.jsonl`."""
    model = {"model": str(folder), "device": "cpu", **options.pop("model", {})}
    data = benchmark_files.write(output.parent / f"{output.name}-rows", rows)
    request = EvalRequest(build_benchmark(name, **options), str(data), None, output, print)
    options = {"truncation": None, "overwrite": False}
    assert evaluate_models(request, [ExecutorOptions(model)], **options) == code
    items, scores = (
        [json.loads(line) for line in (output / file).read_text().splitlines()]
        for file in ("items.jsonl", "scores.jsonl")
    )
    by_key = {(item["id"], item["subset"]): item for item in items}
    assert code or len(scores) == len(items)
    return [by_key[line["id"], line["subset"]] | line for line in scores]


def test_processbench_with_a_step_model(step_model: Path, tmp_path: Path) -> None:
    rows = benchmark_files.processbench()
    rows["gsm8k.json"][0]["steps"][1] += "\nand another line"
    plain = PlainStepModel(step_model)
    lines = evaluate("processbench", step_model, tmp_path / "out", rows)
    assert len(lines) == 24
    for line in lines:
        pieces = [
            (text, text is texts[-1])
            for texts in (step.split("\n") for step in line["responses"])
            for text in texts
        ]
        expected = plain(line["prompt"][0]["content"], pieces, "\n")
        assert line["rewards"] == pytest.approx(expected, abs=2e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["partial"]
    assert set(summary["thresholds"]) == {"GSM8K", "MATH", "OlympiadBench", "Omni-MATH"}
    assert "rewards of the steps" not in (tmp_path / "out" / "report.html").read_text()


def test_prmbench_with_both_preparations(step_model: Path, tmp_path: Path) -> None:
    rows = benchmark_files.prmbench()
    long = {"modified_process": [f"{n}. {'very ' * 20}long" for n in range(1, 9)]}
    rows["prm_test_circular.jsonl"][0].update(long)
    plain = PlainStepModel(step_model)
    for line in evaluate("prmbench", step_model, tmp_path / "model", rows):
        expected = plain(line["prompt"][0]["content"], [(s, True) for s in line["responses"]], "\n")
        assert line["rewards"] == pytest.approx(expected, abs=2e-5)
    num_cut = 0
    lines = evaluate("prmbench", step_model, tmp_path / "prmbench", rows, preparation="prmbench")
    for line in lines:
        problem, steps = line["prompt"][0]["content"], line["responses"]
        assert steps[0].startswith("Step 1: ")
        expected = plain(problem, [(step, True) for step in steps], "ки")[: plain.num_within_512]
        assert line["rewards"] == pytest.approx(expected, abs=2e-5)
        num_cut += len(expected) < len(steps)
    assert num_cut == 1


def test_best_of_n_with_a_step_model(step_model: Path, tmp_path: Path) -> None:
    plain = PlainStepModel(step_model)
    rows = {"sets.jsonl": benchmark_files.best_of_n()}
    for line in evaluate("best-of-n", step_model, tmp_path / "out", rows):
        for response, rewards, last in zip(
            line["responses"], line["step_rewards"], line["rewards"], strict=True
        ):
            pieces = [(text, True) for text in response.split("\n")]
            expected = plain(line["prompt"][0]["content"], pieces, "\n")
            assert rewards == pytest.approx(expected, abs=2e-5)
            assert last == rewards[-1]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"last", "min", "mean", "product"}


def test_judge_on_pairs_in_both_orders(judge: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(judge)
    model = AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float32).eval()
    template = tmp_path / "judge.jinja"
    template.write_text("{{ prompt }} First: {{ response_a }} Second: {{ response_b }} Verdict?")

    def get_log_odds(question: str, a: str, b: str) -> float:
        content = f"{question} First: {a} Second: {b} Verdict?"
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        ids = [tokenizer.bos_token_id, *ids]
        ids += tokenizer.encode("[[", add_special_tokens=False)
        labels = [tokenizer.encode(label, add_special_tokens=False)[0] for label in "AB"]
        with torch.no_grad():
            first, second = model(torch.tensor([ids])).logits[0, -1, labels].tolist()
        return float(first - second)

    options = {"model": {"kind": "judge", "judge_template": str(template)}}
    rows: dict[str, benchmark_files.RowsOf] = {
        "judgebench": {"a.jsonl": benchmark_files.judgebench()},
        "rm-bench": benchmark_files.rm_bench(1),
    }
    for name, num_pairs in (("judgebench", 1), ("rm-bench", 9)):
        lines = evaluate(name, judge, tmp_path / name, rows[name], **options)
        for line in lines:
            assert len(line["log_odds"]) == num_pairs
            pairs = sorted({tuple(sorted(pair)) for pair in line["preferences"]})
            question = line["prompt"][0]["content"]
            for (i, j), (given, swapped) in zip(pairs, line["log_odds"], strict=True):
                a, b = line["responses"][i], line["responses"][j]
                assert given == pytest.approx(get_log_odds(question, a, b), abs=1e-4)
                assert swapped == pytest.approx(-get_log_odds(question, b, a), abs=1e-4)


def test_other_kinds_of_models_are_refused(judge: Path, step_model: Path, tmp_path: Path) -> None:
    rows = benchmark_files.EVERY
    for name, folder, settings, message in (
        ("processbench", judge, {"kind": "judge"}, "run with a step model, and this model is a j"),
        ("rewardbench2", judge, {"kind": "judge"}, "classifier or a step model, and this model is"),
        ("processbench", "demo", {}, "and this model is a classifier"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(name, folder, tmp_path / "out", rows[name], model=settings)  # type: ignore[arg-type]
    with pytest.raises(EvaluationError, match="--variant preparation=prmbench"):
        evaluate(
            "processbench",
            step_model,
            tmp_path / "out",
            rows["processbench"],
            model={"step_format": "skywork-prmbench"},
        )
    with pytest.raises(EvaluationError, match="how its authors run Skywork's step models"):
        evaluate(
            "prmbench",
            step_model,
            tmp_path / "out",
            rows["prmbench"],
            model={"step_format": "qwen-math"},
            preparation="prmbench",
        )


def test_messages_of_trajectories_are_scored_as_plain_transformers(
    checkpoint_of: PathOf, tmp_path: Path
) -> None:
    folder = checkpoint_of("qwen3")
    rows = benchmark_files.plan_rewardbench()
    variant = {"trajectories": "messages"}
    scored = evaluate("plan-rewardbench", folder, tmp_path / "out", rows, **variant)
    reference = Reference(folder)
    for item in scored:
        assert [len(response) for response in item["responses"]] == [5, 5]
        rewards = [reference.reward(response) for response in item["responses"]]
        assert item["rewards"] == pytest.approx(rewards, abs=1e-4)
    flattened = evaluate("plan-rewardbench", folder, tmp_path / "flattened", rows)
    for item, other in zip(scored, flattened, strict=True):
        assert item["rewards"] != pytest.approx(other["rewards"], abs=1e-4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["used"]["trajectories"] == "messages"
    assert "[TOOL_RESPONSE name=look_up]" in (tmp_path / "out" / "report.html").read_text()


def test_share_of_tokens_not_computed_is_reported(
    checkpoint_of: PathOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pair shares its tools and its query, which go through the model once."""
    rows = benchmark_files.plan_rewardbench()
    out = tmp_path / "out"
    scored = evaluate("plan-rewardbench", checkpoint_of("qwen3"), out, rows)
    reference = Reference(checkpoint_of("qwen3"))
    conversations = [
        reference.input_ids([*item["prompt"], {"role": "assistant", "content": response}])
        for item in scored
        for response in item["responses"]
    ]
    num_tokens = sum(map(len, conversations))
    # Distinct beginnings are the nodes of the tree of all conversations.
    num_computed = len({tuple(ids[: i + 1]) for ids in conversations for i in range(len(ids))})
    saved = num_tokens - num_computed
    share = f"{num_tokens:,} tokens, of which {saved:,} ({100 * saved / num_tokens:.1f}%)"
    assert saved > 0.2 * num_tokens
    assert f"{share} were not computed" in capsys.readouterr().out.replace("\n", " ")
    assert f"{share} were not computed." in (out / "summary.md").read_text()
    assert f"{saved:,} ({100 * saved / num_tokens:.1f}%)" in (out / "report.html").read_text()


def test_template_that_refuses_messages_of_trajectories_is_named(
    checkpoint_of: PathOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = benchmark_files.plan_rewardbench()
    variant = {"trajectories": "messages"}
    out = tmp_path / "out"
    assert evaluate("plan-rewardbench", checkpoint_of("gemma2"), out, rows, code=3, **variant) == []
    printed = capsys.readouterr().out
    assert "refused the conversation: Conversation roles must alternate" in printed
    assert "refused 4 items with --variant trajectories=messages; leave that out" in printed
    assert len(evaluate("plan-rewardbench", checkpoint_of("gemma2"), tmp_path / "other", rows)) == 4
    assert "--variant" not in capsys.readouterr().out


def test_vl_rewardbench_with_a_vision_model(tmp_path: Path) -> None:
    folder = build_vision_model(tmp_path / "vision")
    rows = benchmark_files.vl_rewardbench()
    images = [benchmark_files.png(seed, (40 + 31 * seed, 90)) for seed in range(4)]
    for number, row in enumerate(rows):
        row["image"] = {"bytes": images[number // 2], "path": None}
    rows[5]["image"] = {"bytes": images[2][:60], "path": None}
    rows[7]["image"] = {"bytes": b"no image", "path": None}
    lines = evaluate("vl-rewardbench", folder, tmp_path / "out", {"a.parquet": rows}, code=3)
    plain = PlainVisionModel(folder)
    by_id = {row["id"]: row for row in rows}
    assert len(lines) == 6
    for line in lines:
        row = by_id[line["id"]]
        question = line["prompt"][0]["content"][1]["text"]
        expected = [plain(row["image"]["bytes"], question, text) for text in line["responses"]]
        assert line["rewards"] == pytest.approx(expected, abs=1e-4)
    assert len({reward for line in lines for reward in line["rewards"]}) == 12
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(one["id"], one["code"]) for one in summary["failed"]] == [
        (rows[5]["id"], "invalid_image"),
        (rows[7]["id"], "invalid_image"),
    ]
    # The same command scores nothing, and the rewards give the same result.
    before = (tmp_path / "out" / "summary.json").read_bytes()
    evaluate("vl-rewardbench", folder, tmp_path / "out", {"a.parquet": rows}, code=3)
    assert (tmp_path / "out" / "summary.json").read_bytes() == before


class PlainVisionModel:
    """Rewards of one conversation at a time, as on the model card."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self._model = Qwen2_5_VLModel.from_pretrained(folder, dtype=torch.float32).eval()
        weights = load_file(folder / "value_head.safetensors")
        self._head = weights["v_head.summary.weight"], weights["v_head.summary.bias"]

    def __call__(self, image: bytes, question: str, answer: str) -> float:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        pixels = self._processor(Image.open(io.BytesIO(image)).convert("RGB"), return_tensors="pt")
        num_tokens = int(pixels["image_grid_thw"].prod()) // 4
        text = text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens)
        ids = self._tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        is_image = ids == self._tokenizer.convert_tokens_to_ids("<|image_pad|>")
        with torch.no_grad():
            hidden = self._model(
                input_ids=ids, mm_token_type_ids=is_image.int(), **pixels
            ).last_hidden_state[0, -1]
        return float(hidden @ self._head[0][0] + self._head[1][0])
