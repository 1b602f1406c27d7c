"""Write the model card (README.md) and licences list from the figures of this run.

usage: card.py [--work DIR] --out MODEL_DIR [--engine FILE] [--note "..."]
--work: take steps, tokens and licences of a run from there. --engine: the output of `ultraspeed-eval --json`, whose figures then
stand in for the training code's.
"""
import argparse, csv, json, os, shutil
import shape as S

ap = argparse.ArgumentParser(); ap.add_argument("--work"); ap.add_argument("--engine"); ap.add_argument("--out", required=True); ap.add_argument("--note", default="")
a = ap.parse_args()
path = a.out + "/training/figures.json"; f = json.load(open(path)) if os.path.exists(path) else {}
for name, kind in (("target", "target.pt"), ("drafter", "draft.pt")):      # kept in figures.json: the states themselves are not published
    if a.work and os.path.exists(f"{a.work}/{kind}"):
        import torch
        c = torch.load(f"{a.work}/{kind}", map_location="cpu"); new = {"steps": c["step"], "tokens": c["tokens" if name == "target" else "gen"]}
        if "improved" in c: f[name]["polish"] = new
        else: f[name] = new | {"parameters": sum(v.numel() for v in c["model"].values())}
if a.engine:
    e = json.load(open(a.engine)); f["bpb_engine"] = round(e["bits_per_byte"], 4); f["by_engine"] = True
    for kind in ("code", "chat", "long"):
        for k, v in (("greedy", "greedy"), ("t1", "temperature_1")): f[f"tokens_per_round_{kind}_{k}"] = round(e[f"tokens_per_round_{kind}_{v}"], 3)
json.dump(f, open(path, "w"), indent=1); t, d = f["target"], f["drafter"]
if a.work and os.path.exists(a.work + "/licences.tsv"): shutil.copy(a.work + "/licences.tsv", a.out + "/training/licences.tsv")
lic = list(csv.DictReader(open(a.out + "/training/licences.tsv"), delimiter="\t"))
polish = t.get("polish"); kept = f.get("polish_improved", True)
polished = f", then {polish['steps']} of polish, {polish['tokens'] / 1e6:.2f} M tokens" if polish and kept else ""
mb = sum(int(r["bytes"]) for r in lic if r["split"] == "train") / 1e6
size = sum(os.path.getsize(os.path.join(p, x)) for p, _, fs in os.walk(a.out) for x in fs if "__pycache__" not in p) / 2 ** 20
g = lambda k: f.get("tokens_per_round_" + k, "not measured")
formats = how = ""
if "formats" in f:
    x = f["formats"]; share = lambda k: f"{x[k]:.4f} ({100 * (x[k] / x['bpb_bf16'] - 1):+.2f} %)"
    formats = f"""| trained on with BF16 experts, bits per byte | {x['bpb_bf16']:.4f} |
| trained on with MXFP4 experts | {share('bpb_mxfp4')} |
| trained on with BF16 experts, rounded to MXFP4 afterwards | {share('bpb_bf16_rounded_afterwards')} |
"""
    how = f""" What MXFP4 costs: `training/formats.py` trained the published target on for
{x['minutes']:g} min on an H200, once through MXFP4 rounding of the experts ({x['mxfp4']['tokens'] / 1e6:.0f} M tokens) and once without ({x['bf16']['tokens'] / 1e6:.0f} M), alike in all else; neither is the published one."""
held = ", ".join(f"{r['package']} ({r['licence']})" for r in lic if r["split"] == "heldout")
open(a.out + "/README.md", "w").write(f"""# tiny-mimo

A small MiMo-V2-architecture Python code model with its DFlash block drafter, trained from scratch, in the published
checkpoint layout. It exists to run, test and demonstrate the engine end to end on any machine. It is far too small to be
a useful coding assistant: it writes plausible Python, which is often wrong.

## Figures

| figure | value |
| --- | --- |
| target parameters | {t['parameters'] / 1e6:.1f} M ({S.L} layers, {S.E} experts, top-{S.K}) |
| drafter parameters | {d['parameters'] / 1e6:.1f} M ({S.DRAFT_L} layers, block {S.BLOCK}, a gated Markov head of rank {S.DRAFT_RANK}) |
| target training | {t['steps']} steps, {t['tokens'] / 1e6:.2f} M tokens{polished}; {mb:.1f} MB of training text |
| drafter training | {d['steps']} steps; {d['tokens'] / 1e6:.2f} M self-generated tokens |
| held-out bits per byte by `ultraspeed-eval`, whole file | {f.get("bpb_engine", "not measured")} |
{formats}| tokens per round, code, greedy | {g('code_greedy')} |
| tokens per round, code, temperature 1.0 | {g('code_t1')} |
| tokens per round, chat, greedy | {g('chat_greedy')} |
| tokens per round, chat, temperature 1.0 | {g('chat_t1')} |
| tokens per round, 1,024 tokens of held-out text before, greedy | {g('long_greedy')} |
| the same, temperature 1.0 | {g('long_t1')} |
| folder size | {size:.1f} MiB |

Bits per byte: `heldout/text.txt`; trained on, its first {f.get("formats", {}).get("bpb_kb", 200)} kB, windows of 512 tokens, each scored from its second
token.{how} Tokens per round: the first {f.get('prompts', 32)} prompts of each kind, up to {f.get('new', 96)} new tokens each; a round commits the accepted
drafts and one target token, so the range is 1 to 8{", taken with the C++ engine (`ultraspeed-eval --max_tokens 96`)" if f.get("by_engine") else "; rounds cut short by the end of the text are not counted"}.
Temperature 1.0 uses no top-p; drafter and target choose with the same noise. {a.note}

## Layout

The folder follows the published one: `config.json`, fused FP8 qkv (4 shards of 704 rows, one per kv head, 6 scale rows each),
FP8 dense layer 0, BF16 o_proj / embeddings / head / norms / sinks, F32 router and correction bias, MXFP4 experts (U8 codes,
low nibble first, with E8M0 `weight_scale`), `dflash/` (BF16 weights, `mask_embedding.pt`), `tokenizer.json` (byte-level BPE,
4088 real tokens in 4096 rows). `golden/` holds tokenizer, chat-template and logit vectors for the tests; they are regenerated by
every export. `heldout/` holds prompts and text from packages that are in neither the training nor the tokenizer data.

## Training

`training/run.sh` rebuilds everything with one command on a CPU or a CUDA machine; `training/refine.sh` goes on from the published folder
(both are bounded by wall clock, so figures depend on the machine; seeds are fixed in the scripts). `training/shape.py` holds every dimension. Target: Muon for matrices,
AdamW for the rest, steps of 131,072 tokens in random windows of 1,024 and 2,048, learning rate constant and then linear to zero over the
last 60 %, straight-through MXFP4 on the experts for the last 40 %, chat pairs (requests built from signatures and docstrings, answered by the
function) mixed in at 10 %, then 40 % for the last 35 %, aux-loss-free expert balancing. A polish by refine.sh: a fifth of the learning rate to zero, quantisation-aware
throughout, kept where the held-out loss falls. Drafter: rows of 512 and 2,048 tokens of code and 256 of chat in turns; every position of greedy (60 %) and temperature-1 continuations by the exported target is an anchor; those where
decoding would start a round weigh full, the others 0.35. Loss: what is rejected, 1 - the overlap of the drafter's and the target's distribution (greedy: all on one token), and a cross-entropy
whose weight falls from 1 to 0.2; block position k weighted exp(-(k-1)/{S.GAMMA:g}) and by the chance that the draft is right up to it. The Markov head (DSpark, arXiv 2607.05147) is trained with the rest, each
row behind the token that did follow: what the rows alone hold likely is then no longer what they draft. `drafter.py --init MODEL_DIR` goes on with the drafter alone, under
torchrun on several GPUs, and `export.py` puts it into the folder.

Expert block exponents use the smallest e with amax <= 7 * 2^e, in training and export alike.

## Data and licences

Training text: the Python standard library and the distributions pinned in `training/packages.tsv`, all under permissive
licences, split by package; `training/licences.tsv` lists each with its licence, split, files and bytes. Held-out text and prompts come
from: {held}. These excerpts remain under their packages' licences.
""")
print("card written")
