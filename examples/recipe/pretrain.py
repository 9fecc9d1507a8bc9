#!/usr/bin/env python3
"""Pretrains the example model: a small Stable Diffusion that knows the world which `draw world` paints.

    pretrain.py vae     --world DIR --work DIR      the autoencoder, on crops and then on whole pictures
    pretrain.py latents --world DIR --work DIR      every picture through the encoder, once
    pretrain.py decoder --world DIR --work DIR      the decoder a while longer; the latents stay as they are
    pretrain.py unet    --work DIR                  U-Net and text encoder, from random weights
    pretrain.py sheet   --work DIR --out FILE       a contact sheet of samples, to look at
    pretrain.py export  --work DIR --out DIR        the diffusers folder, in half precision

Every stage is seeded and runs on one CPU thread, so that the same machine makes the same weights again. The README
beside this file has the commands and results of the committed model.
"""
import argparse
import copy
import gzip
import importlib.util
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SEED = 20
HELD_OUT = 64  # pictures at the end of the world that no stage trains on

VAE_CONFIG = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=[16, 32, 64, 64],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=192,
)

UNET_CONFIG = dict(
    in_channels=4,
    out_channels=4,
    block_out_channels=[48, 80, 104],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=48,
    norm_num_groups=8,
    sample_size=24,
)
TEXT_CONFIG = dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=48,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=48,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
)
SCHEDULER_CONFIG = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
)
SHEET_PROMPTS = [
    "a red house on a meadow",
    "a yellow balloon over the desert at night",
    "a blue cat in the snow",
    "a purple owl in a forest at sunset",
    "a white mushroom on a beach",
    "a green car in the desert",
    "a red flower in a forest at night",
    "a yellow tent in the snow at sunset",
    "a white cat on a meadow at night",
    "a blue car on a beach at sunset",
    "a purple house in the desert at night",
    "a red balloon over the snow",
]


# ---------------------------------------------------------------------------------------------------- shared
def read_world(folder):
    """All pictures as uint8 arrays [height, width, 3] with their captions, in the order of their names."""
    paths = sorted(Path(folder).glob("*.png"))
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    captions = [path.with_suffix(".txt").read_text().strip() for path in paths]
    return pictures, captions


def to_tensor(pictures):
    """uint8 [height, width, 3] each -> float [batch, 3, height, width] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def lr_at(step, steps, peak, warmup, floor=0.02):
    """Linear warm-up, then half a cosine down to `floor` of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Ema:
    """An exponential moving average of the parameters, faster at the start: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, module, decay):
        self.average, self.decay, self.updates = copy.deepcopy(module).requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, module):
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.parameters()), list(module.parameters()), 1 - keep)


# ---------------------------------------------------------------------------------------------------- vae
def random_crops(pictures, rng, batch, side):
    """Crops at random places, mirrored half of the time; a fifth of them in mixed-up colours, for generality."""
    crops = []
    for picture in rng.sample(pictures, batch):
        y, x = rng.randrange(picture.shape[0] - side + 1), rng.randrange(picture.shape[1] - side + 1)
        crop = picture[y : y + side, x : x + side]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        if rng.random() < 0.2:
            crop = crop[:, :, rng.sample(range(3), 3)]
        crops.append(crop)
    return to_tensor(crops)


def edges(pictures):
    """Differences between neighbours, right and down: what makes outlines crisp."""
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def vae_loss(vae, pictures):
    with torch.autocast("cpu", torch.bfloat16):
        posterior = DiagonalGaussianDistribution(vae.encode(pictures).latent_dist.parameters.float())
        decoded = vae.decode(posterior.sample()).sample.float()
    reconstruction = F.l1_loss(decoded, pictures) + F.mse_loss(decoded, pictures)
    sharpness = sum(F.l1_loss(a, b) for a, b in zip(edges(decoded), edges(pictures)))
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction + 0.5 * sharpness + 3e-4 * kl, reconstruction, kl


@torch.no_grad()
def psnr(vae, pictures):
    """Mean PSNR in dB of `pictures`, each through the posterior mean."""
    values = []
    for picture in pictures:
        x = to_tensor([picture])
        error = F.mse_loss(vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1), x).item()
        values.append(10 * math.log10(4 / error))
    return sum(values) / len(values)


def train_vae(args):
    torch.manual_seed(SEED)
    fit_vae(args, AutoencoderKL(**VAE_CONFIG), args.vae_steps, peak=2e-3, out="vae.pt")


def train_decoder(args):
    """Trains on with the encoder frozen, so that the latents and all that was learned from them stay valid."""
    vae = load_vae(args.work / "vae.pt")
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    torch.manual_seed(SEED)
    fit_vae(args, vae, args.decoder_steps, peak=1e-3, out="decoder.pt")


def fit_vae(args, vae, steps, peak, out):
    rng = random.Random(SEED)
    pictures, _ = read_world(args.world)
    pictures, held_out = pictures[:-HELD_OUT], pictures[-HELD_OUT:]
    squares = [picture for picture in pictures if picture.shape[0] == picture.shape[1]]
    learned = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    ema = Ema(vae, 0.998)
    optimizer = torch.optim.AdamW(learned, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    whole = steps * 9 // 10  # the step from which whole pictures are used
    started = time.time()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr_at(step, steps, peak, 200)
        batch = random_crops(pictures, rng, 8, 96) if step < whole else random_crops(squares, rng, 2, 192)
        loss, reconstruction, kl = vae_loss(vae, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        ema.update(vae)
        if step % 50 == 0 or step + 1 == steps:
            print(f"vae step {step} loss {loss.item():.4f} l1+mse {reconstruction.item():.4f} "
                  f"kl {kl.item():.2f} {time.time() - started:.0f} s", flush=True)
        if (step + 1) % 400 == 0 or step + 1 == steps:
            print(f"vae step {step} held-out PSNR {psnr(ema.average, held_out[:16]):.2f} dB", flush=True)
            torch.save(ema.average.state_dict(), args.work / out)
    print(f"vae held-out PSNR over {HELD_OUT} pictures: {psnr(ema.average, held_out):.2f} dB")


# ---------------------------------------------------------------------------------------------------- latents
def load_vae(weights):
    vae = AutoencoderKL(**VAE_CONFIG)
    vae.load_state_dict(torch.load(weights))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_world(args):
    """Writes latents (posterior means, unscaled) with captions, and the factor that brings them to unit deviation."""
    vae = load_vae(args.work / "vae.pt")
    pictures, captions = read_world(args.world)
    pictures, captions = pictures[: args.pictures], captions[: args.pictures]
    latents = []
    for index, picture in enumerate(pictures):
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(to_tensor([picture])).latent_dist.mean[0].float())
        if index % 1000 == 0:
            print(f"latents {index} of {len(pictures)}", flush=True)
    scale = 1 / torch.cat([latent.flatten() for latent in latents]).std().item()
    print(f"scaling_factor {scale:.5f}")
    torch.save({"latents": latents, "captions": captions, "scaling_factor": scale}, args.work / "latents.pt")


# ---------------------------------------------------------------------------------------------------- tokenizer
def bytes_to_unicode():
    """The printable character that stands for each byte in the CLIP vocabulary."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def write_tokenizer(folder):
    """The CLIP byte-pair encoding in the layout that transformers reads, from the merges that open_clip ships."""
    merges_file = Path(importlib.util.find_spec("open_clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.open(merges_file).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    units = bytes_to_unicode()
    tokens = units + [unit + "</w>" for unit in units] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    token = lambda text: dict(content=text, lstrip=False, normalized=True, rstrip=False, single_word=False)
    special = dict(
        bos_token=token("<|startoftext|>"),
        eos_token=token("<|endoftext|>"),
        pad_token="<|endoftext|>",
        unk_token=token("<|endoftext|>"),
    )
    write_json(folder / "special_tokens_map.json", special)
    added = {name: {"__type": "AddedToken", **special[name]} for name in ("bos_token", "eos_token", "unk_token")}
    write_json(folder / "tokenizer_config.json", dict(
        tokenizer_class="CLIPTokenizer", model_max_length=77, do_lower_case=True, add_prefix_space=False,
        errors="replace", pad_token="<|endoftext|>", **added))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_tokenizer(work):
    write_tokenizer(work / "tokenizer")
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def tokenize(tokenizer, captions):
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


# ---------------------------------------------------------------------------------------------------- unet
class Denoiser(torch.nn.Module):
    """U-Net and text encoder as one module, so that optimizer and average see both."""

    def __init__(self):
        super().__init__()
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG))
        self.unet = UNet2DConditionModel(**UNET_CONFIG)

    def forward(self, noisy, timesteps, tokens):
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample


def min_snr_weights(alphas_cumprod, timesteps, gamma=5.0):
    """min(SNR, gamma) / SNR: little weight where next to no noise is left (arXiv:2303.09556)."""
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    return snr.clamp(max=gamma) / snr


def debiased_weights(alphas_cumprod, timesteps):
    """1 / sqrt(SNR): most weight where the large shapes and the colours are decided (arXiv:2310.08442)."""
    snr = alphas_cumprod[timesteps] / (1 - alphas_cumprod[timesteps])
    return snr.rsqrt().clamp(max=10)


def train_unet(args):
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    stored = torch.load(args.work / "latents.pt")
    tokenizer = load_tokenizer(args.work)
    tokens, empty = tokenize(tokenizer, stored["captions"]), tokenize(tokenizer, [""])
    buckets = {}
    for index, latent in enumerate(stored["latents"]):
        buckets.setdefault(tuple(latent.shape), []).append(index)
    everything = range(len(stored["latents"]))
    latents = [latent * stored["scaling_factor"] for latent in stored["latents"]]
    scheduler = DDIMScheduler(**SCHEDULER_CONFIG)

    model = Denoiser()
    ema = Ema(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    started, losses, first = time.time(), [], 0
    if (args.work / "unet_state.pt").exists():
        state = torch.load(args.work / "unet_state.pt", weights_only=False)
        model.load_state_dict(state["model"])
        ema.average.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = ema.updates = state["step"]
        torch.set_rng_state(state["torch_rng"])
        rng.setstate(state["rng"])
    for step in range(first, args.unet_steps):
        optimizer.param_groups[0]["lr"] = unet_lr(step, args.unet_steps)
        bucket = buckets[tuple(latents[rng.choice(everything)].shape)]
        chosen = rng.sample(bucket, args.batch)
        clean = torch.stack([latents[index] for index in chosen])
        ids = torch.cat([empty if rng.random() < 0.1 else tokens[index : index + 1] for index in chosen])
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (args.batch,))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        predicted = model(noisy, timesteps, ids)
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        # First shapes of any kind, then the colours of the large areas, which the first weighting learns slowly.
        weights = min_snr_weights if step < 1000 else debiased_weights
        loss = (error * weights(scheduler.alphas_cumprod, timesteps)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        losses.append(error.mean().item())
        if (step + 1) % 100 == 0:
            print(f"unet step {step + 1} mse {np.mean(losses[-100:]):.4f} {time.time() - started:.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == args.unet_steps:
            torch.save(ema.average.state_dict(), args.work / "unet.pt")
            torch.save(dict(model=model.state_dict(), ema=ema.average.state_dict(), optimizer=optimizer.state_dict(),
                            step=step + 1, torch_rng=torch.get_rng_state(), rng=rng.getstate()),
                       args.work / "unet_state.pt")


def unet_lr(step, steps, peak=1.5e-3, warmup=200, decay=0.3):
    """Warm-up, a plateau, and a straight line down over the last part, so that a run can be lengthened before it."""
    return peak * min((step + 1) / warmup, max(0.02, (steps - step) / (steps * decay)), 1.0)


# ---------------------------------------------------------------------------------------------------- pipeline
def load_pipeline(work):
    scale = torch.load(work / "latents.pt")["scaling_factor"]
    vae = load_vae(work / "decoder.pt")
    vae.register_to_config(scaling_factor=round(scale, 5))
    model = Denoiser()
    model.load_state_dict(torch.load(work / "unet.pt"))
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=model.text_encoder.eval(), unet=model.unet.eval(), tokenizer=load_tokenizer(work),
        scheduler=DDIMScheduler(**SCHEDULER_CONFIG), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_sheet(args):
    """Three pictures of each prompt, one for each bucket size."""
    pipeline = load_pipeline(args.work)
    sheet = Image.new("RGB", (6 * 196, 2 * (192 + 128 + 256 + 12)), "white")
    for size, (width, height) in enumerate([(192, 192), (256, 128), (128, 256)]):
        pictures = pipeline(SHEET_PROMPTS, width=width, height=height, num_inference_steps=25,
                            guidance_scale=args.guidance, generator=torch.Generator().manual_seed(SEED)).images
        for index, picture in enumerate(pictures):
            top = (index // 6) * 588 + [0, 196, 328][size]
            picture.thumbnail((192, 256))
            sheet.paste(picture, (index % 6 * 196, top))
    sheet.save(args.out)


def export(args):
    """Writes the pipeline folder in half precision, under the key names of the published SD 1.x folders."""
    pipeline = load_pipeline(args.work).to(torch.float16)
    pipeline.save_pretrained(args.out, safe_serialization=True)
    text_encoder = {
        key if key.startswith("text_model.") else f"text_model.{key}": value.contiguous()
        for key, value in pipeline.text_encoder.state_dict().items()
        if not key.endswith("position_ids")
    }
    save_file(text_encoder, args.out / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    for leftover in (args.out / "tokenizer").iterdir():
        leftover.unlink()
    write_tokenizer(args.out / "tokenizer")
    for config in args.out.glob("*/config.json"):
        kept = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        write_json(config, kept)
    for weights in args.out.glob("*/*.safetensors"):
        weights.chmod(0o644)


# ---------------------------------------------------------------------------------------------------- main
STAGES = dict(
    vae=train_vae, latents=encode_world, decoder=train_decoder, unet=train_unet, sheet=draw_sheet, export=export
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--vae-steps", type=int, default=3200)
    parser.add_argument("--decoder-steps", type=int, default=600)
    parser.add_argument("--unet-steps", type=int, default=3300)
    parser.add_argument("--pictures", type=int, default=5000, help="how many pictures the U-Net learns from")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=4.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
