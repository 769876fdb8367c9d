"""Hostile checkpoint folders, each loaded in a process of its own: how long, how much memory?

The embedded demo model is copied and one thing in it is changed: links out of the folder, pipes,
headers that lie, templates that loop or build huge texts, absurd sizes, values of a wrong type,
tokenizers that grow. Each copy is opened, its encoder and its weights are loaded, and one
conversation is scored, as a service does at its start.

Wanted: each is refused with an error of ours that names what is wrong, or gives a reward, within
10 s of processor time and with at most 300 MB of memory. The last line is JSON.

    python tests/stress/attack_checkpoints.py [--only NAME] [--seconds 10] [--megabytes 300]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import transformers  # noqa: F401  (imported once, before processes are forked)
from stress_result import finish

from rm_core import ModelConfig, RewardScorer, load_encoder, open_checkpoint
from rm_core.catalog.entries import seeds_dir
from rm_core.errors import RewardError

DEMO = seeds_dir() / "demo"
_MOST_ADDRESS_SPACE = 14 << 30
_KILL_AFTER = 12  # of the wall clock: the machine may be busy
_FORK = multiprocessing.get_context("fork")
HEAD = {"score.weight": {"dtype": "F32", "shape": [1, 192], "data_offsets": [0, 768]}}

os.environ["HF_HUB_OFFLINE"] = "1"

Change = Callable[[Path], object]


def in_json(name: str, **values: Any) -> Change:
    """Set keys of a JSON file."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(content | values))

    return change


def config(**values: Any) -> Change:
    return in_json("config.json", **values)


def tokenizer_config(**values: Any) -> Change:
    return in_json("tokenizer_config.json", **values)


def tokenizer(**values: Any) -> Change:
    return in_json("tokenizer.json", **values)


def text(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def template(start: str) -> Change:
    """Put a piece before the chat template."""
    whole = (DEMO / "chat_template.jinja").read_text()
    return text("chat_template.jinja", start + whole)


def link(name: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def header(content: Any, more: bytes = b"", length: int | None = None, size: int = 0) -> Change:
    """A weight file of `size` bytes (sparse) whose header says that it has `length`."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()

    def change(folder: Path) -> None:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(data) if length is None else length) + data + more)
            if size:
                file.truncate(size)

    return change


def sparse(name: str, size: int) -> Change:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return change


def head(**values: Any) -> Change:
    return header({"score.weight": HEAD["score.weight"] | values}, b"\0" * 768)


def split_at(pattern: str) -> Change:
    """A tokenizer that splits text at a regular expression first."""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]})


def replacing(*pairs: tuple[Any, str]) -> Change:
    """A tokenizer that replaces pieces of text first."""
    steps = [{"type": "Replace", "pattern": old, "content": new} for old, new in pairs]
    return tokenizer(normalizer={"type": "Sequence", "normalizers": steps})


def huge_vocabulary(num_bytes: int) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        size, number = 0, len(vocabulary)
        while size < num_bytes:
            vocabulary[f"{number:x}"] = number
            size += 20
            number += 1
        (folder / "tokenizer.json").write_text(json.dumps(content, separators=(",", ":")))

    return change


def added_tokens(number: int) -> Change:
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return tokenizer(
        added_tokens=[
            {"id": n % 5000, "content": f"<|{n}|>", "special": True, **token} for n in range(number)
        ]
    )


class _Evil:
    def __reduce__(self) -> Any:
        return (os.system, ("touch PWNED",))


def pickles(folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(_Evil()))


def index(**files: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "x.safetensors")
        text("model.safetensors.index.json", json.dumps({"weight_map": files}))(folder)

    return change


GROWING = (
    "{%% set ns = namespace(x='\\U0001f600'*1000) %%}"
    "{%% for i in range(40) %%}{%% set ns.x = %s %%}{%% endfor %%}"
)
CASES: Mapping[str, Change] = {
    "demo as it is": lambda folder: None,
    # Links and files that are none.
    "link: template to /etc/passwd": link("chat_template.jinja", "/etc/passwd"),
    "link: config.json to /etc/passwd": link("config.json", "/etc/passwd"),
    "link: txt to /dev/zero": link("extra.txt", "/dev/zero"),
    "link: weights to /dev/zero": link("model.safetensors", "/dev/zero"),
    "link: tokenizer.json to /dev/zero": link("tokenizer.json", "/dev/zero"),
    "link: to itself": link("extra.txt", "extra.txt"),
    "link: named template": lambda folder: (
        (folder / "additional_chat_templates").mkdir(),
        link("additional_chat_templates/tool_use.jinja", "/etc/passwd")(folder),
    ),
    "fifo: txt": lambda folder: os.mkfifo(folder / "extra.txt"),
    "fifo: tokenizer.model": lambda folder: os.mkfifo(folder / "tokenizer.model"),
    "fifo: safetensors": lambda folder: os.mkfifo(folder / "y.safetensors"),
    "folder: x.json": lambda folder: (folder / "x.json").mkdir(),
    "pickles beside": pickles,
    # Weight files.
    "weights: header of 2**40": header(b"", length=2**40, size=3 << 30),
    "weights: header of 90 MB of lists": header(b'{"a":[' + b"[]," * 30_000_000 + b"[]]}"),
    "weights: header of 7 MB of lists": header(b'{"a":[' + b"[]," * 2_300_000 + b"[]]}"),
    "weights: deep header": header(b'{"a":' * 200_000),
    "weights: negative offset": head(data_offsets=[-(10**6), 0]),
    "weights: huge span": head(data_offsets=[-(2**61), 0]),
    "weights: offset 10**30": head(data_offsets=[0, 10**30]),
    "weights: shape of texts": head(shape=["x"]),
    "weights: shape null": head(shape=None),
    "weights: dtype a list": head(dtype=["F32"]),
    "weights: sparse of 1 TB": header(
        {"score.weight": {"dtype": "F32", "shape": [1, 2**38], "data_offsets": [0, 2**40]}},
        size=2**40 + 79,
    ),
    "weights: same name twice": header(
        json.dumps(HEAD).encode()[:-1] + b"," + json.dumps(HEAD).encode()[1:], b"\0" * 768
    ),
    "weights: empty": text("model.safetensors", b""),
    "index: outside": index(**{"score.weight": "../../x.safetensors"}),
    "index: /etc/passwd": index(**{"score.weight": "/etc/passwd"}),
    "index: a list": lambda folder: (
        index()(folder),
        text("model.safetensors.index.json", '{"weight_map": [1]}')(folder),
    ),
    "index: 1 TB": lambda folder: (
        index()(folder),
        sparse("model.safetensors.index.json", 2**40)(folder),
    ),
    # config.json
    "config: 10**7 layers": config(num_hidden_layers=10**7, layer_types=None),
    "config: 1,000 layers": config(num_hidden_layers=1_000, layer_types=None),
    "config: hidden 10**9": config(hidden_size=10**9),
    "config: hidden 2**24": config(hidden_size=2**24, num_attention_heads=1),
    "config: vocabulary 10**12": config(vocab_size=10**12),
    "config: intermediate 10**11": config(intermediate_size=10**11),
    "config: intermediate 2**24": config(intermediate_size=2**24),
    "config: heads 0": config(num_attention_heads=0),
    "config: heads 65536, head_dim 65536": config(num_attention_heads=65536, head_dim=65536),
    "config: positions -5": config(max_position_embeddings=-5),
    "config: positions 10**15": config(max_position_embeddings=10**15),
    "config: positions 10**4000": text(
        "config.json", (DEMO / "config.json").read_text().replace("16384", "1" + "0" * 4000)
    ),
    "config: positions true": config(max_position_embeddings=True),
    "config: architectures in lists": config(architectures=[["x"]]),
    "config: architectures an object": config(architectures={"a": 1}),
    "config: id2label 5": config(id2label=5),
    "config: id2label of 100,000": config(id2label={str(n): "x" for n in range(100_000)}),
    "config: id2label of no numbers": config(id2label={"x": "y"}),
    "config: pad a text": config(pad_token_id="x"),
    "config: pad 10**9": config(pad_token_id=10**9),
    "config: rope nan": config(
        rope_parameters={"rope_theta": float("nan"), "rope_type": "default"}
    ),
    "config: rope type unknown": config(rope_parameters={"rope_type": "evil", "rope_theta": 1}),
    "config: rope a list": config(rope_parameters=[1]),
    "config: rope factor 10**300": config(
        rope_parameters={"rope_type": "linear", "factor": 1e300, "rope_theta": 1e4}
    ),
    "config: rope yarn of texts": config(
        rope_parameters={"rope_type": "yarn", "factor": "x", "rope_theta": "y"}
    ),
    "config: longrope of 10**6": config(
        rope_parameters={
            "rope_type": "longrope",
            "short_factor": [1] * 10**6,
            "long_factor": [1] * 10**6,
            "factor": 2.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 128,
        }
    ),
    "config: deep": text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "config: 90 deep": config(a=json.loads("[" * 90 + "]" * 90)),
    "config: 8 MB of lists": text("config.json", '{"a":[' + "[]," * 2_600_000 + "1]}"),
    "config: 15 MB of lists": text("config.json", '{"a":[' + "[]," * 5_000_000 + "1]}"),
    "config: 900 KB of lists": text("config.json", '{"a":[' + "[]," * 300_000 + "1]}"),
    "config: 1 TB": sparse("config.json", 2**40),
    "config: a list": text("config.json", "[1]"),
    "config: UTF-16": text("config.json", (DEMO / "config.json").read_text().encode("utf-16")),
    "config: torchao": config(quantization_config={"quant_method": "torchao"}),
    "config: fp8": config(quantization_config={"quant_method": "fp8"}),
    "config: attention kernel": config(_attn_implementation="evil/kernel"),
    "config: attention kernel, internal": config(_attn_implementation_internal="evil/kernel"),
    "config: experts kernel": config(experts_implementation="evil/kernel"),
    "config: auto_map": config(auto_map={"AutoModelForSequenceClassification": "evil.Evil"}),
    "config: dtype of code": config(dtype="__import__('os')"),
    "config: activation of code": config(hidden_act="os.system"),
    "config: problem_type": config(problem_type="evil"),
    "config: plan of tensors": config(base_model_tp_plan={"*": "evil"}, tp_size=10**6),
    "config: weights elsewhere": config(transformers_weights="../x.safetensors"),
    "config: name elsewhere": config(_name_or_path="evil/model", name_or_path="evil/model"),
    "config: output_attentions": config(output_attentions=True, return_dict=False),
    "config: pruned heads": config(pruned_heads={"0": [0, 1, 2]}),
    "config: chunked": config(chunk_size_feed_forward=1),
    "config: methods": config(to_dict=5, save_pretrained="x", __class__="x"),
    "config: num_labels is a key": config(use_return_dict=3, num_labels=1),
    # Templates.
    "template: range(10**9)": template("{% for i in range(1000000000) %}{% endfor %}"),
    "template: nested loops": template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "template: 'a' * 3e9": template("{{ ('a'*3000000000)|length }}"),
    "template: 'a' * 1e6 * 1e6": template("{{ ('a'*1000000*1000000)|length }}"),
    "template: 9**9**9**9": template("{{ (9**(9**(9**9))) % 7 }}"),
    "template: recursion": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "template: wide format": template("{{ '%1000000000d'|format(1)|length }}"),
    "template: wide format by %": template("{{ ('%' ~ '9'*9 ~ 'd') % 1 }}"),
    "template: wide format by *": template("{{ '%*d' % (999999999, 1) }}"),
    "template: doubled by ~": template(GROWING % "ns.x ~ ns.x"),
    "template: doubled by +": template(GROWING % "ns.x + ns.x"),
    "template: doubled by a block": template(
        "{% set ns = namespace(x='\U0001f600'*1000) %}{% for i in range(40) %}"
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}"
    ),
    "template: doubled by a macro": template(
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROWING % "f(ns.x)"
    ),
    "template: doubled by format": template(GROWING % "'{0}{0}'.format(ns.x)"),
    "template: doubled by a filter format": template(GROWING % "'%s%s'|format(ns.x, ns.x)"),
    "template: doubled by %": template(GROWING % "'%s%s' % (ns.x, ns.x)"),
    "template: doubled by join": template(GROWING % "[ns.x, ns.x]|join"),
    "template: doubled by a replacement": template(
        GROWING % "ns.x.replace('\U0001f600', '\U0001f600' * 2)"
    ),
    "template: doubled lists": template(
        (GROWING % "ns.x + ns.x").replace("'\U0001f600'*1000", "[1]")
    ),
    "template: tojson of itself": template(GROWING % "ns.x|tojson|tojson"),
    "template: urlize and others": template(GROWING % "(ns.x|urlencode)"),
    "template: escape": template((GROWING % "ns.x|e|string|e").replace("\U0001f600", "&")),
    "template: deep format": template("{{ ('{0:{1}}').format(1, 999999) }}"),
    "template: printed often": template("{% for i in range(99999) %}{{ 'x'*1000 }}{% endfor %}"),
    "template: sort of 10**6": template("{{ range(99999)|list|sort|length }}"),
    "template: class walk": template("{{ ''.__class__.__mro__ }}"),
    "template: globals": template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"),
    "template: attr": template("{{ (messages|attr('__class__')) }}"),
    "template: include": template("{% include '/etc/passwd' %}"),
    "template: import": template("{% import 'os' as os %}"),
    "template: 50,000 parentheses": template("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"),
    "template: 50,000 nots": template("{{ " + "not " * 50_000 + "1 }}"),
    "template: 20,000 sums": template("{{ 1" + "+1" * 20_000 + " }}"),
    "template: 10,000 ifs": template("{% if 1 %}" * 10_000 + "{% endif %}" * 10_000),
    "template: 50,000 filters": template("{{ 1" + "|string" * 50_000 + " }}"),
    "template: 900 KB of lists": template("{{ [" + "[]," * 300_000 + "] }}"),
    "template: 2 MB": template("{# " + "x" * 2_000_000 + " #}"),
    "template: null characters": template("\0" * 100),
    "template: missing ends": template("{% for i in x %}"),
    # Tokenizers.
    "tokenizer: catastrophic split": split_at(r"(a+)+$"),
    "tokenizer: nested repeats": split_at(r"((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "tokenizer: repeat of 100,000": split_at(r"(?:a{100000}){100000}"),
    "tokenizer: 1 MB of a pattern": split_at("(?:a|" * 5_000 + "b" + ")" * 5_000),
    "tokenizer: broken pattern": split_at("(("),
    "tokenizer: catastrophic replacement": replacing(({"Regex": r"(a|aa)+$"}, "b")),
    "tokenizer: growth by replacements": replacing(*[({"String": "a"}, "a" * 100)] * 12),
    "tokenizer: growth by an empty pattern": replacing(*[({"Regex": ""}, "aaaa")] * 20),
    "tokenizer: replaced by 10 MB": replacing(({"String": "a"}, "b" * 10_000_000)),
    "tokenizer: prepended 1,000 times": tokenizer(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "x" * 10_000}] * 2_000,
        }
    ),
    "tokenizer: precompiled nonsense": tokenizer(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}
    ),
    "tokenizer: padded to 10**9": tokenizer(
        padding={
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    ),
    "tokenizer: cut to 1": tokenizer(
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    ),
    "tokenizer: template of 10**6 tokens": tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 10**6
            + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [0], "tokens": ["x"]}},
        }
    ),
    "tokenizer: ids of 2**31": tokenizer(
        model={"type": "BPE", "vocab": {"a": 2**31, "b": 1}, "merges": []}
    ),
    "tokenizer: no merges": tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "tokenizer: unigram without unk": tokenizer(
        model={"type": "Unigram", "unk_id": 99, "vocab": [["a", -1.0]], "byte_fallback": False}
    ),
    "tokenizer: another model": tokenizer(model={"type": "Evil"}),
    "tokenizer: deep": text("tokenizer.json", '{"a":' * 100_000),
    "tokenizer: 60 MB of vocabulary": huge_vocabulary(60_000_000),
    "tokenizer: 20 MB of vocabulary": huge_vocabulary(20_000_000),
    "tokenizer: 100,000 added tokens": added_tokens(100_000),
    "tokenizer: 500,000 added tokens": added_tokens(500_000),
    "tokenizer: 1 TB": sparse("tokenizer.json", 2**40),
    "tokenizer: 200 MB of nothing": text("tokenizer.json", b" " * (200 << 20)),
    "vocab.json: 200 MB of nothing": text("vocab.json", b" " * (200 << 20)),
    "merges.txt: 200 MB of nothing": text("merges.txt", b" \n" * (100 << 20)),
    "tokenizer.model: 200 MB": text("tokenizer.model", b"\n\xff" * (100 << 20)),
    "added_tokens.json: a list": text("added_tokens.json", "[1]"),
    "added_tokens.json: 10**6": text(
        "added_tokens.json", json.dumps({f"<{n}>": n for n in range(300_000)})
    ),
    "special_tokens_map.json: numbers": text("special_tokens_map.json", '{"bos_token": 5}'),
    "generation_config.json: nonsense": text(
        "generation_config.json", '{"max_length": "x", "a": []}'
    ),
    "preprocessor_config.json: code": text(
        "preprocessor_config.json", '{"auto_map": {"A": "b.C"}}'
    ),
    # tokenizer_config.json
    "tokenizer config: auto_map": tokenizer_config(auto_map={"AutoTokenizer": ["evil.Evil", None]}),
    "tokenizer config: class of code": tokenizer_config(tokenizer_class="os.system"),
    "tokenizer config: class a list": tokenizer_config(tokenizer_class=["x"]),
    "tokenizer config: class elsewhere": tokenizer_config(tokenizer_class="BertTokenizer"),
    "tokenizer config: file elsewhere": tokenizer_config(tokenizer_file="/etc/passwd"),
    "tokenizer config: file /dev/zero": tokenizer_config(tokenizer_file="/dev/zero"),
    "tokenizer config: vocabulary /dev/zero": tokenizer_config(
        vocab_file="/dev/zero", merges_file="/dev/zero"
    ),
    "tokenizer config: another file": tokenizer_config(
        fast_tokenizer_files=["../tokenizer.4.0.json"]
    ),
    "tokenizer config: positions": tokenizer_config(init_inputs=["/etc/passwd"]),
    "tokenizer config: object": tokenizer_config(tokenizer_object={"a": 1}),
    "tokenizer config: gguf": tokenizer_config(gguf_file="/dev/zero", backend="x"),
    "tokenizer config: path": tokenizer_config(name_or_path="evil/model", vocab="x", merges=5),
    "tokenizer config: length a text": tokenizer_config(model_max_length="x"),
    "tokenizer config: length 10**400": tokenizer_config(model_max_length=10**400),
    "tokenizer config: sides": tokenizer_config(padding_side=5, truncation_side=["x"]),
    "tokenizer config: tokens of numbers": tokenizer_config(
        bos_token=5, eos_token=[1], pad_token={}
    ),
    "tokenizer config: extra tokens": tokenizer_config(
        extra_special_tokens={"a": 5}, additional_special_tokens=5
    ),
    "tokenizer config: 300,000 added": tokenizer_config(
        added_tokens_decoder={str(n): {"content": f"<{n}>"} for n in range(100_000)}
    ),
    "tokenizer config: added nonsense": tokenizer_config(added_tokens_decoder={"x": 5}),
    "tokenizer config: template 5": tokenizer_config(chat_template=5),
    "tokenizer config: templates of numbers": tokenizer_config(chat_template={"default": 5}),
    "tokenizer config: 15 MB of lists": text(
        "tokenizer_config.json", '{"a":[' + "[]," * 5_000_000 + "1]}"
    ),
    "tokenizer config: 7 MB of lists": text(
        "tokenizer_config.json", '{"a":[' + "[]," * 2_300_000 + "1]}"
    ),
    "tokenizer config: a list": text("tokenizer_config.json", "[1]"),
    "adapter: beside": text("adapter_config.json", '{"base_model_name_or_path": "../x"}'),
}


def load(folder: str) -> str:
    """What comes of a folder."""
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a" * 28}]
    try:
        chosen = ModelConfig(folder)
        checkpoint = open_checkpoint(chosen)
        encoder = load_encoder(chosen, checkpoint)
        encoder.encode_all([conversation], "error")
        scorer = RewardScorer.load(chosen)
        scorer.warm_up()
        (result,) = scorer.score([conversation])
    except RewardError as error:
        return f"refused: {error.detail}"
    return f"loaded: {str(result)[:80]}"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(folder: str, answer: Connection) -> None:
    """Load a folder and tell what came of it: CPU seconds, MB of memory, words."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.chdir(Path(folder).parent)
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESS_SPACE,) * 2)
    started, before = time.process_time(), _peak_mb()
    try:
        found = load(folder)
    except BaseException as error:
        found = f"UNCAUGHT {type(error).__name__}: {str(error)[:300]}"
    answer.send((time.process_time() - started, _peak_mb() - before, found))
    os._exit(0)


def tried(name: str, most_s: float) -> tuple[float, float, str]:
    """Build one folder and load it in a process of its own; as `child` tells it."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as made:
        folder = Path(made) / "model"
        shutil.copytree(DEMO, folder)
        CASES[name](folder)
        ours, theirs = _FORK.Pipe()
        process = _FORK.Process(target=child, args=(str(folder), theirs))
        process.start()
        theirs.close()
        limit = _KILL_AFTER * most_s
        try:
            if not ours.poll(limit):
                return limit, 0.0, f"HANGS for more than {limit:g} s"
            seconds, megabytes, found = ours.recv()
        except EOFError:
            process.join()
            return 0.0, 0.0, f"DIED with exit code {process.exitcode}"
        finally:
            process.kill()
            process.join()
        if (Path(made) / "PWNED").exists():
            found = "RAN CODE"
        return seconds, megabytes, found.replace(str(folder), "FOLDER")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=10, help="most of each")
    parser.add_argument("--megabytes", type=float, default=300, help="most of each")
    options = parser.parse_args()
    checks, slowest, largest = {}, 0.0, 0.0
    for name in CASES:
        if options.only not in name:
            continue
        seconds, more, found = tried(name, options.seconds)
        good = (
            seconds <= options.seconds
            and more <= options.megabytes
            and found.startswith(("refused: ", "loaded: "))
        )
        mark = " " if good else "!"
        print(
            f"{mark} {name:42} {seconds:6.1f} s {more:+7.0f} MB  {ascii(found)[1:-1][:230]}",
            flush=True,
        )
        checks[name] = good
        slowest, largest = max(slowest, seconds), max(largest, more)
    return finish(
        checks,
        {"cases": len(checks), "slowest_s": round(slowest, 1), "largest_mb": round(largest)},
    )


if __name__ == "__main__":
    sys.exit(main())
