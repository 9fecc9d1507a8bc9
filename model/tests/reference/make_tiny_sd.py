#!/usr/bin/env python3
"""Make tiny random-weight Stable Diffusion pipelines (SD1.x, SD2.x, SDXL style).

usage: make_tiny_sd.py OUT_DIR [--cases cases.json] [--case NAME ...] [--no-verify]

Writes, per case, OUT_DIR/NAME/
  model_index.json scheduler/ tokenizer/ text_encoder/ unet/ vae/   diffusers folder layout
  (SDXL: also tokenizer_2/ text_encoder_2/)
  text_encoder_hf5_names/  text_encoder as transformers >= 5 saves it (no text_model. prefix)
  vae_legacy_names/   same VAE with the old attention names (query/key/value/proj_attn)
                      that the published SD1.x/2.x folders still carry
  ldm/model.safetensors        original single-file layout, f32
  ldm/model_fp16.safetensors   the same rounded to f16
  ldm/model.ckpt               torch pickle {"state_dict":..., "global_step":...} with schedule
                               buffers, position_ids and model_ema.* keys (EMA values = 2 x weights,
                               so that reading the wrong set shows)
Weights depend on the case's seed and the parameter's canonical name only.
"""
import argparse, json, os, zlib
import torch
from safetensors.torch import save_file, load_file
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

HERE = os.path.dirname(os.path.abspath(__file__))

# ------------------------------------------------------------------ configs
UNET = {
    "sd1": dict(sample_size=8, block_out_channels=[32, 64, 64, 64], layers_per_block=2,
                attention_head_dim=8, cross_attention_dim=32,
                down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3),
    "sd2": dict(sample_size=8, block_out_channels=[32, 64, 64, 64], layers_per_block=2,
                attention_head_dim=[2, 4, 8, 8], cross_attention_dim=32, use_linear_projection=True,
                upcast_attention=True,
                down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
                up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3),
    "sdxl": dict(sample_size=16, block_out_channels=[32, 64, 64], layers_per_block=2,
                 attention_head_dim=[2, 4, 4], cross_attention_dim=64, use_linear_projection=True,
                 transformer_layers_per_block=[1, 1, 2],
                 down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                 up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                 addition_embed_type="text_time", addition_time_embed_dim=8,
                 projection_class_embeddings_input_dim=80),
}
VAE = dict(block_out_channels=[32, 32, 64, 64], layers_per_block=1, latent_channels=4, sample_size=64,
           norm_num_groups=32, down_block_types=["DownEncoderBlock2D"] * 4,
           up_block_types=["UpDecoderBlock2D"] * 4)
VAE_SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
TE = {  # (text_encoder, text_encoder_2)
    "sd1": [dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                 hidden_act="quick_gelu", projection_dim=32)],
    "sd2": [dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                 hidden_act="gelu", projection_dim=16)],
    "sdxl": [dict(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                  hidden_act="quick_gelu", projection_dim=32),
             dict(hidden_size=32, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2,
                  hidden_act="gelu", projection_dim=32)],
}
SCHED = {
    "sd1": ("PNDMScheduler", dict(skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1,
                                  clip_sample=False)),
    "sd2": ("DDIMScheduler", dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False,
                                  prediction_type="v_prediction")),
    "sdxl": ("EulerDiscreteScheduler", dict(steps_offset=1, interpolation_type="linear",
                                            timestep_spacing="leading", use_karras_sigmas=False,
                                            prediction_type="epsilon")),
}
SCHED_COMMON = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                    num_train_timesteps=1000, trained_betas=None)
PIPE = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline",
        "sdxl": "StableDiffusionXLPipeline"}


# ------------------------------------------------------------------ tokenizer
def bytes_to_unicode():
    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    cs, n = bs[:], 0
    for b in range(256):
        if b not in bs:
            bs.append(b); cs.append(256 + n); n += 1
    return dict(zip(bs, map(chr, cs)))


def clip_vocab():
    with open(os.path.join(HERE, "../../assets/clip_merges.zz"), "rb") as f:
        merges = zlib.decompress(f.read()).decode("utf-8").splitlines()
    units = list(bytes_to_unicode().values())
    toks = units + [u + "</w>" for u in units] + ["".join(m.split()) for m in merges]
    toks += ["<|startoftext|>", "<|endoftext|>"]
    assert len(toks) == 49408 and len(set(toks)) == 49408
    return {t: i for i, t in enumerate(toks)}, merges


def write_tokenizer(d, pad):
    os.makedirs(d, exist_ok=True)
    vocab, merges = clip_vocab()
    with open(f"{d}/vocab.json", "w", encoding="utf-8") as f:
        json.dump(vocab, f, separators=(",", ":"))
    with open(f"{d}/merges.txt", "w", encoding="utf-8", newline="\n") as f:
        f.write("#version: 0.2\n" + "\n".join(merges) + "\n")
    tok = lambda c: dict(content=c, lstrip=False, normalized=True, rstrip=False, single_word=False)
    sp = dict(bos_token=tok("<|startoftext|>"), eos_token=tok("<|endoftext|>"), pad_token=pad,
              unk_token=tok("<|endoftext|>"))
    cfg = dict(add_prefix_space=False, do_lower_case=True, errors="replace", model_max_length=77,
               tokenizer_class="CLIPTokenizer", pad_token=pad,
               **{k: dict(__type="AddedToken", **sp[k]) for k in ("bos_token", "eos_token", "unk_token")})
    json.dump(sp, open(f"{d}/special_tokens_map.json", "w"), indent=2)
    json.dump(cfg, open(f"{d}/tokenizer_config.json", "w"), indent=2)


# ------------------------------------------------------------------ weights
def canon_te(sd):
    """published CLIP text encoders name everything text_model.* (text_projection.weight aside)"""
    return {(k if k.startswith(("text_model.", "text_projection.")) else "text_model." + k): v
            for k, v in sd.items() if not k.endswith("position_ids")}


def rand_weight(name, shape, seed):
    g = torch.Generator().manual_seed((zlib.crc32(name.encode()) + 7919 * seed) & 0x7FFFFFFF)
    w = torch.randn(shape, generator=g)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "bias":
        return 0.05 * w
    if "token_embedding" in name:
        return 0.3 * w
    if "position_embedding" in name:
        return 0.1 * w
    if len(shape) == 1:                      # norm weight
        return 1.0 + 0.1 * w
    fan_in = 1
    for s in shape[1:]:
        fan_in *= s
    return 0.9 * w / fan_in ** 0.5


@torch.no_grad()
def fill(module, prefix, seed, canon=lambda s: s):
    for name, p in module.named_parameters():
        cn = list(canon({name: 0}))[0]
        p.copy_(rand_weight(prefix + cn, tuple(p.shape), seed))


# ------------------------------------------------------------------ LDM naming
def unet_to_ldm(sd, layers):
    """diffusers UNet names -> names under model.diffusion_model. (any number of blocks)"""
    out = {}
    n_up = 1 + max(int(k.split(".")[1]) for k in sd if k.startswith("up_blocks."))
    up_has_attn = {i: any(k.startswith(f"up_blocks.{i}.attentions.") for k in sd) for i in range(n_up)}
    res = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
           ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]
    top = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
           "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
           "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for k, v in sd.items():
        p = k.split(".")
        stem, leaf = k.rsplit(".", 1)
        if stem in top:
            out[f"{top[stem]}.{leaf}"] = v
            continue
        if p[0] == "down_blocks":
            i, kind = int(p[1]), p[2]
            if kind == "downsamplers":
                base, rest = f"input_blocks.{(layers + 1) * (i + 1)}.0.op", p[5:]
            else:
                base = f"input_blocks.{(layers + 1) * i + int(p[3]) + 1}.{0 if kind == 'resnets' else 1}"
                rest = p[4:]
        elif p[0] == "mid_block":
            kind = p[1]
            base = "middle_block." + ("1" if kind == "attentions" else str(2 * int(p[2])))
            rest = p[3:]
        elif p[0] == "up_blocks":
            i, kind = int(p[1]), p[2]
            if kind == "upsamplers":
                base = f"output_blocks.{(layers + 1) * i + layers}.{2 if up_has_attn[i] else 1}.conv"
                rest = p[5:]
            else:
                base = f"output_blocks.{(layers + 1) * i + int(p[3])}.{0 if kind == 'resnets' else 1}"
                rest = p[4:]
        else:
            raise KeyError(k)
        rest = ".".join(rest)
        if kind == "resnets":
            for a, b in res:
                if rest.startswith(a + "."):
                    rest = b + rest[len(a):]
                    break
        out[f"{base}.{rest}"] = v
    assert len(out) == len(sd)
    return out


VAE_ATTN = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_ATTN_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def vae_to_ldm(sd):
    out = {}
    n_up = 1 + max(int(k.split(".")[2]) for k in sd if k.startswith("decoder.up_blocks."))
    for k, v in sd.items():
        n = k
        if ".down_blocks." in n or ".up_blocks." in n:
            p = n.split(".")
            i = int(p[2])
            d = f"{p[0]}.down.{i}" if p[1] == "down_blocks" else f"{p[0]}.up.{n_up - 1 - i}"
            if p[3] == "resnets":
                n = f"{d}.block.{p[4]}." + ".".join(p[5:])
            else:
                n = f"{d}.{'downsample' if p[3] == 'downsamplers' else 'upsample'}." + ".".join(p[5:])
        elif ".mid_block.resnets." in n:
            for j in (0, 1):
                n = n.replace(f".mid_block.resnets.{j}.", f".mid.block_{j + 1}.")
        elif ".mid_block.attentions.0." in n:
            pre, rest = n.split(".mid_block.attentions.0.")
            stem, leaf = rest.rsplit(".", 1)
            n = f"{pre}.mid.attn_1.{VAE_ATTN[stem]}.{leaf}"
            if leaf == "weight" and stem != "group_norm":
                v = v[:, :, None, None]
        n = n.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        out[n] = v
    assert len(out) == len(sd)
    return out


def vae_to_legacy(sd):
    out = {}
    for k, v in sd.items():
        if ".attentions.0." in k:
            for a, b in VAE_ATTN_OLD.items():
                k = k.replace(f".{a}.", f".{b}.")
        out[k] = v
    return out


def te_to_openclip(sd, extra_layer_seed=None):
    """canonical HF CLIP text names -> OpenCLIP names. extra_layer_seed: append the unused last
    resblock which SD2.x single files carry and the diffusers folder leaves out."""
    out, qkv = {}, {}
    ren = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
           "self_attn.out_proj": "attn.out_proj"}
    for k, v in sd.items():
        if k == "text_projection.weight":
            out["text_projection"] = v.t().contiguous()
            continue
        k = k[len("text_model."):]
        if k == "embeddings.token_embedding.weight":
            out["token_embedding.weight"] = v
        elif k == "embeddings.position_embedding.weight":
            out["positional_embedding"] = v
        elif k.startswith("final_layer_norm."):
            out["ln_final." + k.split(".")[1]] = v
        else:
            p = k.split(".", 3)                      # encoder layers N rest
            n, rest = int(p[2]), p[3]
            stem, leaf = rest.rsplit(".", 1)
            if stem in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                qkv.setdefault((n, leaf), {})[stem[10]] = v
            else:
                out[f"transformer.resblocks.{n}.{ren[stem]}.{leaf}"] = v
    for (n, leaf), d in qkv.items():
        out[f"transformer.resblocks.{n}.attn.in_proj_{leaf}"] = torch.cat([d["q"], d["k"], d["v"]])
    if extra_layer_seed is not None:
        L = 1 + max(n for n, _ in qkv)
        for k in [k for k in out if k.startswith("transformer.resblocks.0.")]:
            nk = k.replace("resblocks.0.", f"resblocks.{L}.")
            out[nk] = rand_weight("unused." + nk, tuple(out[k].shape), extra_layer_seed)
        h = out["positional_embedding"].shape[1]
        out["text_projection"] = rand_weight("unused.text_projection", (h, h), extra_layer_seed)
    out["logit_scale"] = torch.tensor(4.6052)
    return out


def to_ldm(family, unet_sd, layers, vae_sd, te_sds, seed):
    o = {"model.diffusion_model." + k: v for k, v in unet_to_ldm(unet_sd, layers).items()}
    o |= {"first_stage_model." + k: v for k, v in vae_to_ldm(vae_sd).items()}
    hf = lambda p, s: {p + k: v for k, v in s.items()} | {
        p + "text_model.embeddings.position_ids": torch.arange(77)[None]}
    if family == "sd1":
        o |= hf("cond_stage_model.transformer.", te_sds[0])
    elif family == "sd2":
        o |= {"cond_stage_model.model." + k: v for k, v in te_to_openclip(te_sds[0], seed).items()}
    else:
        o |= hf("conditioner.embedders.0.transformer.", te_sds[0])
        o |= {"conditioner.embedders.1.model." + k: v for k, v in te_to_openclip(te_sds[1]).items()}
    return {k: v.contiguous() for k, v in o.items()}


# ------------------------------------------------------------------ build
def build(case, out_root, verify=True):
    fam, seed = case["family"], case["seed"]
    out = os.path.join(out_root, case["name"])
    os.makedirs(out + "/ldm", exist_ok=True)
    unet = UNet2DConditionModel(**(UNET[fam] | case.get("unet", {})))
    vae = AutoencoderKL(**(VAE | dict(scaling_factor=VAE_SCALE[fam]) | case.get("vae", {})))
    tes = []
    for i, base in enumerate(TE[fam]):
        cfg = CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, bos_token_id=0, eos_token_id=2,
                             pad_token_id=1, layer_norm_eps=1e-5,
                             **(base | case.get("text_encoder_2" if i else "text_encoder", {})))
        tes.append((CLIPTextModelWithProjection if i else CLIPTextModel)(cfg))
    fill(unet, "unet.", seed)
    fill(vae, "vae.", seed)
    for i, t in enumerate(tes):
        fill(t, f"te{i}.", seed, canon_te)
    unet.save_pretrained(out + "/unet")
    vae.save_pretrained(out + "/vae")
    idx = {"_class_name": PIPE[fam], "_diffusers_version": "0.21.4",
           "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    if fam == "sdxl":
        idx["force_zeros_for_empty_prompt"] = True
    else:
        idx |= {"safety_checker": [None, None], "feature_extractor": [None, None],
                "requires_safety_checker": False}
    te_sds = []
    for i, t in enumerate(tes):
        s = "_2" if i else ""
        t.save_pretrained(f"{out}/text_encoder{s}")
        if i == 0:           # transformers >= 5 writes this class without the text_model. prefix
            t.save_pretrained(f"{out}/text_encoder_hf5_names")
        sd = canon_te({k: v.detach().contiguous() for k, v in t.state_dict().items()})
        te_sds.append(sd)
        save_file(sd, f"{out}/text_encoder{s}/model.safetensors", metadata={"format": "pt"})
        write_tokenizer(f"{out}/tokenizer{s}", "!" if (fam == "sd2" or i) else "<|endoftext|>")
        idx["text_encoder" + s] = ["transformers", type(t).__name__]
        idx["tokenizer" + s] = ["transformers", "CLIPTokenizer"]
    cls, sc = SCHED[fam]
    os.makedirs(out + "/scheduler", exist_ok=True)
    json.dump({"_class_name": cls, "_diffusers_version": "0.21.4"} | SCHED_COMMON | sc
              | case.get("scheduler", {}), open(out + "/scheduler/scheduler_config.json", "w"), indent=2)
    idx["scheduler"] = ["diffusers", cls]
    json.dump(idx, open(out + "/model_index.json", "w"), indent=2)
    usd = {k: v.detach() for k, v in unet.state_dict().items()}
    vsd = {k: v.detach() for k, v in vae.state_dict().items()}
    os.makedirs(out + "/vae_legacy_names", exist_ok=True)
    save_file(vae_to_legacy(vsd), out + "/vae_legacy_names/diffusion_pytorch_model.safetensors",
              metadata={"format": "pt"})
    json.dump(json.load(open(out + "/vae/config.json")), open(out + "/vae_legacy_names/config.json", "w"),
              indent=2)
    ldm = to_ldm(fam, usd, unet.config.layers_per_block, vsd, te_sds, seed)
    save_file(ldm, out + "/ldm/model.safetensors", metadata={"format": "pt"})
    save_file({k: (v.half() if v.is_floating_point() else v) for k, v in ldm.items()},
              out + "/ldm/model_fp16.safetensors", metadata={"format": "pt"})
    full = dict(ldm)
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    full["betas"] = betas.float()
    full["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    for k, v in ldm.items():
        if k.startswith("model.diffusion_model."):
            full["model_ema." + k[len("model."):].replace(".", "")] = 2 * v
    full["model_ema.decay"] = torch.tensor(0.9999)
    full["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)
    torch.save({"state_dict": full, "global_step": 1234, "epoch": 1}, out + "/ldm/model.ckpt")
    n = {"unet": unet, "vae": vae} | {f"text_encoder{'_2' if i else ''}": t for i, t in enumerate(tes)}
    info = {k: sum(p.numel() for p in m.parameters()) for k, m in n.items()}
    if verify:
        info["verify"] = check(case, out, usd, vsd, te_sds)
    print(case["name"], json.dumps(info))
    return info


def check(case, out, usd, vsd, te_sds):
    """load everything back with diffusers/transformers, from both layouts; compare bit for bit"""
    import diffusers
    from diffusers.loaders import single_file_utils as sf
    same = lambda a, b: set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
    r = {}
    pipe = getattr(diffusers, PIPE[case["family"]]).from_pretrained(out)
    r["folder"] = (same(pipe.unet.state_dict(), usd) and same(pipe.vae.state_dict(), vsd)
                   and same(canon_te(pipe.text_encoder.state_dict()), te_sds[0])
                   and (len(te_sds) == 1 or same(canon_te(pipe.text_encoder_2.state_dict()), te_sds[1])))
    r["vae_legacy"] = same(AutoencoderKL.from_pretrained(out + "/vae_legacy_names").state_dict(), vsd)
    for f in ("model.safetensors", "model.ckpt"):
        u = UNet2DConditionModel.from_single_file(f"{out}/ldm/{f}", config=out, subfolder="unet",
                                                  local_files_only=True)
        v = AutoencoderKL.from_single_file(f"{out}/ldm/{f}", config=out, subfolder="vae",
                                           local_files_only=True)
        r["ldm_unet " + f] = same(u.state_dict(), usd)
        r["ldm_vae " + f] = same(v.state_dict(), vsd)
    ck = load_file(out + "/ldm/model.safetensors")
    back = {}
    for i, sd in enumerate(te_sds):
        cls = CLIPTextModelWithProjection if i else CLIPTextModel
        cfg = CLIPTextConfig.from_pretrained(out, subfolder="text_encoder_2" if i else "text_encoder")
        m = cls(cfg)
        try:
            if case["family"] == "sd2" or i:
                pre = "conditioner.embedders.1.model." if i else "cond_stage_model.model."
                c = sf.convert_open_clip_checkpoint(m, dict(ck), prefix=pre)
            else:
                c = sf.convert_ldm_clip_checkpoint(dict(ck))
            c = canon_te(c)
            back[f"ldm_te{i}"] = all(k in c and torch.equal(c[k], sd[k]) for k in sd)
        except Exception as e:                       # report, do not hide
            back[f"ldm_te{i}"] = f"{type(e).__name__}: {e}"[:200]
    r |= back
    t = pipe.tokenizer(["a photo of a cat"]).input_ids[0]
    r["tokenizer"] = t == [49406, 320, 1125, 539, 320, 2368, 49407]
    return r


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out")
    ap.add_argument("--cases", default=os.path.join(HERE, "cases.json"))
    ap.add_argument("--case", action="append")
    ap.add_argument("--no-verify", action="store_true")
    a = ap.parse_args()
    for c in json.load(open(a.cases))["cases"]:
        if not a.case or c["name"] in a.case:
            build(c, a.out, not a.no_verify)


if __name__ == "__main__":
    main()
