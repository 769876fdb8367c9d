"""The command `skyreward plan` and its options. `serve.capacity` computes the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from serve.capacity.devices import DEVICES
from serve.cli.options import SingleValueCommand, echo_status, get_given_options, handle_errors

_AT_LEAST_ONE = click.IntRange(min=1)


@click.command(cls=SingleValueCommand)
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="A model in the catalogue, a local folder or a hub id.",
)
@click.option("--gpu", type=click.Choice(list(DEVICES)), default="h200", help="GPU to plan for.")
@click.option(
    "--conversations-per-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Load in conversations per second.  [default: the capacity of one replica]",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=0),
    default=400,
    metavar="N",
    help="Length of the prompt that the conversations of a request share, in tokens.",
)
@click.option(
    "--response-tokens",
    type=_AT_LEAST_ONE,
    default=400,
    metavar="N",
    help="Length of each response, in tokens.",
)
@click.option(
    "--group-size",
    type=_AT_LEAST_ONE,
    default=2,
    metavar="N",
    help="Conversations in a request: 2 for pairs.",
)
@click.option(
    "--cache-hit-rate",
    "cached_share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Share of conversations whose reward is in the score cache (0-1).",
)
@click.option(
    "--gpus-per-replica",
    type=_AT_LEAST_ONE,
    default=1,
    metavar="N",
    help="Number of GPUs that share the layers of one replica.",
)
@click.option(
    "--utilization",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.7,
    metavar="SHARE",
    help="Target utilization of the replicas at this load (0-1).",
)
@click.option(
    "--gpus-per-node", type=_AT_LEAST_ONE, default=8, metavar="N", help="Number of GPUs of a node."
)
@click.option(
    "--cores-per-node",
    type=_AT_LEAST_ONE,
    default=96,
    metavar="N",
    help="Number of CPU cores of a node.",
)
@click.option(
    "--measure",
    "measured",
    is_flag=True,
    help="Load the model on the local device and measure its rate, instead of --gpu.",
)
@click.option(
    "--matrix-tflops",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Matrix multiplication rate of the GPU in TFLOP/s, from `make gpu-check`.",
)
@click.option(
    "--mfu",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Model FLOPs utilization measured by `make gpu-check` (0-1).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a Ray Serve config of the planned service.",
)
@handle_errors
def plan(model: str, gpu: str, as_json: bool, output: Path | None, **options: Any) -> None:
    """Plan memory, throughput and replicas for a load, and print the start command.

    The memory is computed from the checkpoint's sizes. The rate is a share of the GPU's rate, which
    is inferred unless it is measured (--measure) or given (--matrix-tflops, --mfu). The number of
    replicas is the load divided by the rate.

    Example: skyreward plan --model Skywork-Reward-V2-Llama-3.1-8B --conversations-per-s 500
    """
    import yaml

    from serve.capacity.console import print_plan
    from serve.capacity.plan import NodeSpec, PlanRequest, make_plan
    from serve.capacity.replica import Load

    measured = options["measured"]
    if measured and get_given_options(("gpu", "matrix_tflops", "mfu")):
        raise click.UsageError(
            "--measure uses the local device; leave out --gpu, --matrix-tflops and --mfu"
        )
    conversations_per_s = options["conversations_per_s"]
    names = ("prompt_tokens", "response_tokens", "group_size", "cached_share")
    lengths = Load(conversations_per_s or 1.0, *(options[name] for name in names))
    tflops = options["matrix_tflops"]
    fields = ("gpus_per_node", "cores_per_node", "gpus_per_replica", "utilization")
    node_spec = NodeSpec(**{name: options[name] for name in fields})
    if measured:
        echo_status("loading the model and measuring its rate")
    capacity_plan = make_plan(
        PlanRequest(
            model=model,
            gpu=None if measured else gpu,
            load=lengths if conversations_per_s else None,
            lengths=lengths,
            node_spec=node_spec,
            matrix_flops=tflops * 1e12 if tflops else None,
            efficiency=options["mfu"],
        )
    )
    print_plan(capacity_plan, as_json)
    if output is not None:
        config = yaml.safe_dump(dict(capacity_plan.config), sort_keys=False)
        output.write_text(config, encoding="utf-8")
        echo_status(
            f"wrote {output}: the service listens on every interface; add `api_keys_file` to it"
        )
