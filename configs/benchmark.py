"""Measures how fast everything is on this machine, against its roofline and against PyTorch.

    python -m cmunet_jax.main --config configs/benchmark.py:size=small
    python -m cmunet_jax.main --config configs/benchmark.py:size=paper \
        --config.cases=torch_finetune,torch_inference
    python -m cmunet_jax.main --config configs/benchmark.py:size=paper,dtype=bfloat16   # a GPU

Prints one table (median, quartiles and extremes of repeated runs, images/s, memory, FLOP/s,
bytes/s, share of the roofline) and writes benchmark.json, every sample in it, into runs/benchmark.
Five minutes of processor time with size=small, and three more for PyTorch beside it (with
`pip install '.[bench]'`; most of it in torch.compile); a busy machine takes longer. Nothing here
passes or fails by its time: where others use the machine, look at the spread. The exit status is 1
if a case could not be measured. Arguments: size=small|paper|demo|tiny, dtype=float32|bfloat16,
data=NAME.
"""

import ml_collections

from cmunet_jax import objectives
from configs import common, finetune, pretrain

SIZES = ("small", "paper", "demo", "tiny")
BATCH = {"paper": 16, "small": 8, "demo": 8, "tiny": 4}
# The embedded set that holds a batch and is quickly built; what is on the images costs nothing.
DATA = {"paper": "demo", "small": "tiny", "demo": "tiny", "tiny": "tiny"}
METRICS = {"paper": (300, 512), "small": (32, 512), "demo": (32, 256), "tiny": (4, 128)}


def get_config(arg=None):
    """Returns the config of a benchmark."""
    arg = common.parse_arg(arg, size=SIZES, dtype=objectives.DTYPES, data=common.EMBEDDED_DATA)
    config = ml_collections.ConfigDict()
    config.stage = "benchmark"
    # What is measured: all, or names with commas: finetune, cmunet, mae, genesis, moco, spark (the
    # training step and its augmentation), inference, export (one frame from native size and back),
    # idle, remat (time and memory of storing less), checkpoint, build, metrics, first_step;
    # torch_finetune, torch_inference, torch_cmunet (ours and PyTorch's, in turns).
    config.cases = "all"
    config.repetitions = 7  # samples of each, at least
    config.seconds = 1.0  # of sampling each, at least
    config.slow_repetitions = 2  # of build, metrics and first_step
    config.batch_size = BATCH[arg.size]
    config.dtype = arg.dtype  # of the computation, in every case
    config.fast = True  # the quick forms of the layers; False: the textbook ones
    config.threads = 0  # cores to use, by JAX and PyTorch alike; 0: all
    config.torch = ml_collections.ConfigDict(
        {"compile": True}  # whether torch.compile takes part: it needs a C++ compiler and minutes
    )
    images, side = METRICS[arg.size]
    config.metrics = ml_collections.ConfigDict({"images": images, "side": side})
    config.build = "angio_synthetic/tiny"  # the embedded data set that case `build` builds
    config.data = common.data(arg.data, DATA[arg.size])  # of all trainings
    base = f"size={arg.size},data={arg.data}"
    config.finetune = finetune.get_config(f"{base},init=scratch")
    config.pretrain = ml_collections.ConfigDict(
        {name: pretrain.get_config(f"{base},objective={name}") for name in pretrain.OBJECTIVES}
    )
    for part in (config.finetune, *config.pretrain.values()):
        # References: what is set above is set in every part, unless it is set there too.
        part.batch_size = config.get_ref("batch_size")
        part.model.dtype, part.model.fast = config.get_ref("dtype"), config.get_ref("fast")
        for key in config.data:
            part.data[key] = config.data.get_ref(key)
        part.accumulation = 1  # one pass: XLA counts the body of a loop once
    config.finetune.labels, config.finetune.eval_split = 0, ""
    return config
