"""What is compared with what, and the bars."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Variant:
    """A script beside this file, the case that it runs, and its flags."""

    script: str
    case: str
    flags: tuple[str, ...] = ()
    precision: str = "no"
    launched: str | None = None
    """Accelerate config, in place of one process."""
    environment: dict[str, str] = field(default_factory=dict)
    """What is set besides."""


@dataclass(frozen=True)
class Case:
    """One comparison: ours over a peer's, in `quantity`, against a bar."""

    name: str
    ours: Variant
    peers: dict[str, tuple[Variant | None, float | None]]
    """Name of each peer to its variant, or None for ours alone, and the bar of the ratio."""
    quantity: str = "rows/s"
    needs: str | None = None
    """What must have been prepared in the working folder."""
    tokens_per_row: int = 0
    flops_per_token: float = 0.0
    """Of a training step."""

    def not_measured(self, peer: str, why: str) -> dict:
        """Return the row of a peer on a machine that cannot run the case, or where it failed."""
        nothing = dict.fromkeys(("ratio", "spread", "met", "ours", "theirs"))
        row = {"case": self.name, "peer": peer, "quantity": self.quantity}
        return row | nothing | {"bar": self.peers[peer][1], "not_measured": why}


@dataclass(frozen=True)
class Curve:
    """How the cost of its variants grows with one value."""

    name: str
    values: tuple[int, ...]
    variants: dict[str, Variant]
    quantity: str = "tokens/s"
    flag: str = ""
    """By which the variants take the value; the name, unless it is given."""
    needs: str | None = None
    """What must have been prepared in the working folder."""

    def at(self, variant: Variant, x: int) -> Variant:
        """Return a variant with the value `x`."""
        flag = f"{self.flag or self.name.replace(' ', '_')}={x}"
        two = "cpu_2_processes.yaml" if flag == "processes=2" else None
        return replace(variant, flags=(*variant.flags, flag), launched=two)

    def scale(self, x: int) -> int:
        """Return what turns rows per second into the quantity."""
        if self.quantity != "tokens/s":
            return 1
        return x if self.flag == "sequence_length" else 128


def training_flops(layers: int, width: int, vocab: int, length: int) -> float:
    """Return the operations of a token's training step: 6 per parameter, and attention's."""
    parameters = layers * 12 * width**2 + vocab * width
    return 6 * parameters + 12 * layers * width * length


SHAKESPEARE = {"tokens_per_row": 64, "flops_per_token": training_flops(4, 128, 65, 64)}
GPT2 = {"tokens_per_row": 256, "flops_per_token": training_flops(12, 768, 50257, 256)}
GPT2_FULL = {"tokens_per_row": 1024, "flops_per_token": training_flops(12, 768, 50257, 1024)}

MEANS = {
    "oneDNN": "onednn",
    "kept memory": "memory",
    "few kernels": "kernels",
    "plain attention": "attention",
    "one kernel for GELU": "gelu",
}
"""What makes a run fast on a CPU, and the flag that leaves it out."""

CPU = (
    Case(
        "shakespeare",
        Variant("ours", "shakespeare"),
        {
            "nanogpt": (Variant("nanogpt", "shakespeare"), 1.0),
            "nanogpt compiled": (Variant("nanogpt", "shakespeare", ("compile",)), 1.0),
            "plain Trainer": (Variant("plain_trainer", "shakespeare"), 1.3),
            "ours compiled": (Variant("ours", "shakespeare", ("compile",)), None),
        },
        **SHAKESPEARE,
    ),
    Case(
        "gpt2-124m",
        Variant("ours", "gpt2-124m"),
        {
            "nanogpt": (Variant("nanogpt", "gpt2-124m"), 1.4),
            "nanogpt compiled": (Variant("nanogpt", "gpt2-124m", ("compile",)), 1.25),
            "plain Trainer": (Variant("plain_trainer", "gpt2-124m"), None),
            "ours compiled": (Variant("ours", "gpt2-124m", ("compile",)), None),
            "ours in bf16": (Variant("ours", "gpt2-124m", precision="bf16"), None),
        },
        **GPT2,
    ),
    Case(
        "sst2",
        Variant("ours", "sst2"),
        {
            "padded to 128": (Variant("plain_trainer", "sst2-padded"), 6.0),
            "random batches": (Variant("plain_trainer", "sst2"), 2.0),
            "ours, padded": (Variant("ours", "sst2", ("without=packing",)), None),
        },
    ),
    Case(
        "xquad",
        Variant("ours", "xquad"),
        {
            "padded to 384": (Variant("plain_trainer", "xquad-padded"), 1.3),
            "random batches": (Variant("plain_trainer", "xquad"), 1.3),
            "ours, padded": (Variant("ours", "xquad", ("without=packing",)), None),
        },
    ),
    Case(
        "startup",
        Variant("ours", "startup"),
        {"plain Trainer": (Variant("plain_trainer", "startup"), 1.0)},
        "seconds",
    ),
    Case(
        "large-lora-8bit",
        Variant("ours", "large-lora-8bit"),
        {"full fine-tuning": (Variant("ours", "large-full"), 0.30)},
        "MB",
        "large",
    ),
    Case(
        "predict",
        Variant("ours", "predict"),
        {"transformers.pipeline": (Variant("plain_trainer", "predict"), 4.0)},
        needs="ours-predict",
    ),
    Case(
        "generate",
        Variant("ours", "generate"),
        {
            "transformers.pipeline": (Variant("plain_trainer", "generate"), None),
            "ours, static cache": (Variant("ours", "generate", ("static",)), None),
            "ours, not merged": (Variant("ours", "generate", ("adapter",)), None),
            "ours, on 8 bits": (Variant("ours", "generate", ("adapter", "base=8bit")), None),
        },
        needs="ours-generate",
    ),
    *(
        Case(
            f"means, {name}",
            Variant("ours", name),
            {
                f"without {means}": (Variant("ours", name, (f"without={flag}",)), None)
                for means, flag in MEANS.items()
            },
            **sizes,
        )
        for name, sizes in (("gpt2-124m", GPT2), ("sst2", {}))
    ),
    *(
        Case(
            f"positions per token, {name} by {batch}",
            Variant("padding_ratio", name, (f"batch={batch}",)),
            {"padded": (Variant("padding_ratio", name, (f"batch={batch}", "padded")), None)},
            "positions",
        )
        for name, batch in (("sst2", 16), ("sst2", 64), ("xquad", 8))
    ),
    Case(
        "documents kept apart",
        Variant("ours", "documents"),
        {"wrapped": (Variant("ours", "documents", ("wrapped",)), None)},
    ),
    Case(
        "chunked loss, batch 16",
        Variant("ours", "gpt2-124m", ("batch=16",)),
        {
            "all logits at once": (
                Variant("ours", "gpt2-124m", ("batch=16", "without=chunks")),
                None,
            )
        },
        **GPT2,
    ),
    Case(
        "loss of 2,048 tokens",
        Variant("loss", "loss"),
        {
            "torch's, the same chunks": (Variant("loss", "loss", ("torch",)), None),
            "torch's automatic chunks": (Variant("loss", "loss", ("automatic",)), None),
            "all logits at once": (Variant("loss", "loss", ("whole",)), None),
        },
        "steps/s",
    ),
    Case(
        "8-bit AdamW, GPT-2 large",
        Variant("ours", "large-full", ("optim=adamw_bnb_8bit",)),
        {"AdamW": (Variant("ours", "large-full"), None)},
        "MB",
        "large",
    ),
    Case("overhead", Variant("ours", "overhead"), {"": (None, 0.03)}, "share"),
)
GPU = (
    Case(
        "gpt2-124m, block 1024",
        Variant("ours", "gpt2-124m-full", ("compile",), "bf16"),
        {
            "": (None, None),
            "nanogpt compiled": (Variant("nanogpt", "gpt2-124m-full", ("compile",)), 1.0),
            "ours, not compiled": (Variant("ours", "gpt2-124m-full", (), "bf16"), None),
        },
        **GPT2_FULL,
    ),
    Case(
        "sst2, LoRA",
        Variant("ours", "sst2-lora", (), "bf16"),
        {"plain script, padded to 128": (Variant("plain_trainer", "sst2-lora", (), "bf16"), 3.0)},
        needs="small",
    ),
    Case(
        "generate, one GPU",
        Variant("ours", "generate", ("base=bf16",)),
        {"transformers.pipeline": (Variant("plain_trainer", "generate", ("base=bf16",)), 3.0)},
        needs="ours-generate",
    ),
    Case(
        "xl-lora-8bit",
        Variant("ours", "xl-lora-8bit", (), "bf16"),
        {"full fine-tuning": (Variant("ours", "xl-full", (), "bf16"), 0.35)},
        "MB",
        "xl",
    ),
)
"""The most important first: the suite may be given a time after which it starts nothing more."""
SUITES = {"cpu": CPU, "gpu": GPU}

NO_THREAD_CACHE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""Without it, fewer holes are left between tensors (docs/experiments.md)."""
GROW = {"ours": Variant("ours", "grow"), "plain Trainer": Variant("plain_trainer", "grow")}
CURVES = (
    Curve("sequence length", (64, 128, 256, 512, 1024), GROW, flag="sequence_length"),
    Curve("vocabulary", (1024, 4096, 16384, 50257), GROW),
    Curve("width", (128, 256, 512, 768, 1024), GROW),
    Curve("workers", (0, 1, 2), GROW),
    Curve("processes", (1, 2), GROW),
    Curve(
        "rows",
        (1000, 4000, 16000, 60000),
        {"ours": Variant("ours", "startup"), "plain Trainer": Variant("plain_trainer", "startup")},
        "seconds",
    ),
    *(
        Curve(
            f"steps, {name}",
            (20, 60, 180),
            {
                "ours": Variant("ours", name),
                "ours, no thread cache": Variant("ours", name, environment=NO_THREAD_CACHE),
                "ours, all kernels kept": Variant("ours", name, ("without=kernels",)),
                "plain Trainer": Variant("plain_trainer", name),
            },
            "rows/s",
            flag="steps",
        )
        for name in ("sst2", "xquad")
    ),
    Curve(
        "attention",
        (64, 128, 256, 512, 1024),
        {
            "plain products": Variant("ours", "grow", ("attention=plain",)),
            "torch's plain products": Variant("ours", "grow", ("attention=torch",)),
            "fused": Variant("ours", "grow", ("attention=fused",)),
        },
        flag="sequence_length",
    ),
    Curve(
        "batch, LoRA",
        (1, 4, 16, 64),
        {
            "fp32 base": Variant("ours", "sst2-lora", ("steps=11",)),
            "8-bit base": Variant("ours", "sst2-lora", ("steps=11", "base=8bit")),
            "4-bit base": Variant("ours", "sst2-lora", ("steps=11", "base=4bit")),
        },
        "rows/s",
        flag="batch",
        needs="small",
    ),
    Curve(
        "rows to predict",
        (1000, 4000, 16000),
        {
            "ours": Variant("ours", "predict"),
            "ours, no thread cache": Variant("ours", "predict", environment=NO_THREAD_CACHE),
            "pipeline": Variant("plain_trainer", "predict", ("batch=32",)),
        },
        "rows/s",
        flag="rows",
        needs="ours-predict",
    ),
)
