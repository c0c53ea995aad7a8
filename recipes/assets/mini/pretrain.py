"""Pre-train the base: a tiny CLIP that sees well and knows only half of the names.

    python -m recipes.assets.mini.pretrain --data OUT --out OUT/base [--width 32|64|96]

Reads OUT/pretrain/DOMAIN.npz. Phase 1 trains both towers on ten domains with every class named.
Phase 2 keeps the image tower, starts the text tower afresh and trains both on the eight tasks, with
half of each task's classes named and the others called by the domain's common caption.
Another width is the same model, wider or narrower: the same data, steps, layers and shared space.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from recipes.assets.mini.bpe import learn_merges, write_merges
from recipes.assets.mini.domains import DOMAINS, FASHION, MNIST, REPOSITORY, TASKS, Domain

SHAPE = REPOSITORY / "hubmerge" / "mini" / "base" / "open_clip_config.json"
WIDTHS = (32, 64, 96)
SHIPPED_WIDTH = 64
PEAK_LR = 1e-3
WARMUP_STEPS = 100
NAMING_SEED = 3
"""Chooses the named half of the classes: the same half as in the shipped base."""
LARGEST_SCALE = math.log(100)
# So few images of these exist that each is seen half as often.
BATCH_SHARE = {MNIST.name: 8, FASHION.name: 8}
BATCH_SHARE_DRAWN = 16


@dataclass(frozen=True)
class Phase:
    """One stretch of pre-training: on what, for how long, with how many class names told."""

    domains: tuple[Domain, ...]
    steps: int
    named_share: float


@dataclass(frozen=True)
class Source:
    """One domain's images [N, S, S] uint8, and for each the number [N] of its caption."""

    images: Tensor
    captions: Tensor
    share: int

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw this source's share of a batch: inputs [n, 3, S, S] and caption numbers [n]."""
        chosen = torch.randint(len(self.images), (self.share,), generator=generator)
        grey = (self.images[chosen].float() / 255 - 0.5) / 0.25
        return grey[:, None].expand(-1, 3, -1, -1), self.captions[chosen]


def captions_of(domain: Domain, named_share: float, rng: np.random.Generator) -> list[str]:
    """Return each class's caption: its own for a random share of them, else the common one."""
    count = len(domain.classes)
    named = set(rng.permutation(count)[: int(named_share * count + 0.5)].tolist())
    return [
        caption if label in named else domain.common_caption
        for label, caption in enumerate(domain.captions)
    ]


def read_sources(folder: Path, phase: Phase) -> tuple[list[Source], list[str]]:
    """Return the phase's sources, and the captions that their numbers point at."""
    rng = np.random.default_rng(NAMING_SEED)
    report = {domain.name: captions_of(domain, phase.named_share, rng) for domain in phase.domains}
    captions = sorted({caption for group in report.values() for caption in group})
    sources = []
    for domain in phase.domains:
        rows = np.load(folder / f"{domain.name}.npz")
        number = np.array([captions.index(caption) for caption in report[domain.name]])
        sources.append(
            Source(
                images=torch.from_numpy(rows["images"]),
                captions=torch.from_numpy(number[rows["labels"]]),
                share=BATCH_SHARE.get(domain.name, BATCH_SHARE_DRAWN),
            )
        )
    return sources, captions


def contrastive_loss(model: CLIP, images: Tensor, tokens: Tensor, numbers: Tensor) -> Tensor:
    """Return CLIP's two-way loss where many images of a batch may share a caption.

    images [B, 3, S, S], tokens [T, context] of all captions, numbers [B]. Each caption that occurs
    enters once, and its images share its target evenly.
    """
    present, row = numbers.unique(return_inverse=True)
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(tokens[present], normalize=True)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    target = functional.one_hot(row, len(present)).float()
    image_to_text = functional.cross_entropy(logits, row)
    text_to_image = functional.cross_entropy(logits.T, target.T / target.sum(0)[:, None])
    return (image_to_text + text_to_image) / 2


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: linear warm-up times a cosine that ends near zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LR * warmup * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def optimizer_of(model: CLIP) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98))


def train(model: CLIP, tokenize: SimpleTokenizer, folder: Path, phase: Phase, seed: int) -> None:
    """Train the model in place."""
    sources, captions = read_sources(folder, phase)
    tokens = tokenize(captions)
    optimizer = optimizer_of(model)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase.steps)
        inputs, numbers = zip(*(source.batch(generator) for source in sources), strict=True)
        loss = contrastive_loss(model, torch.cat(inputs), tokens, torch.cat(numbers))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        if (step + 1) % 200 == 0 or step + 1 == phase.steps:
            print(f"step {step + 1} of {phase.steps}: loss {loss.item():.3f}", flush=True)


def shape_of(width: int) -> dict[str, Any]:
    """Return the base's open_clip config with both towers `width` numbers wide.

    A head stays as wide as in the shipped base, so their number grows with the width. The space
    that the towers share stays the same.
    """
    config: dict[str, Any] = json.loads(SHAPE.read_text())
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    vision["width"] = text["width"] = width
    text["heads"] = width // vision["head_width"]
    return config


def new_model(shape: dict[str, Any], seed: int) -> CLIP:
    """Return a model with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    return CLIP(**shape)


def main() -> None:
    """Learn the vocabulary, train both phases, save a folder that open_clip loads."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="what build_data wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs=2, default=(3000, 800), help="of each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, choices=WIDTHS, default=SHIPPED_WIDTH)
    options = parser.parse_args()

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = options.out / "bpe.txt.gz"
    write_merges(vocabulary, learn_merges([c for domain in DOMAINS for c in domain.captions]))
    config = shape_of(options.width)
    shape = config["model_cfg"]
    context = shape["text_cfg"]["context_length"]
    tokenize = SimpleTokenizer(bpe_path=str(vocabulary), context_length=context)
    shape["text_cfg"]["vocab_size"] = tokenize.vocab_size

    phases = (
        Phase(DOMAINS, options.steps[0], named_share=1.0),
        Phase(TASKS, options.steps[1], named_share=0.5),
    )
    first = new_model(shape, options.seed)
    train(first, tokenize, options.data / "pretrain", phases[0], options.seed)
    model = new_model(shape, options.seed)
    model.visual.load_state_dict(first.visual.state_dict())
    train(model, tokenize, options.data / "pretrain", phases[1], options.seed)

    (options.out / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    save_file(model.state_dict(), options.out / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
