"""What MXFP4 experts cost in quality: the published target trained on twice, alike but for the rounding of its experts.

usage: formats.py --work DIR --model MODEL_DIR [--minutes 1] [--bpb-kb 200]
DIR holds the encoded text (prepare_data.py and tokenizer.py, or a pack of pack_corpus.sh unpacked). One arm trains through
MXFP4 rounding and is measured with MXFP4 experts, as published; the other trains and is measured with BF16 experts. Seeds,
time and learning rate are the same; everything else is rounded as export.py does. The second arm's experts rounded to MXFP4
afterwards show what training through the rounding is worth. Bits per byte of heldout/text.txt go to MODEL_DIR/training/figures.json.
"""
import argparse, json, os, shutil, subprocess, sys, time
import torch, tokenizers
from evaluate import bpb
from export import save_sharded, target_tensors
from model import Model, b16

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = [f"{name}{part}.npy" for name in ("train", "chat", "heldout") for part in ("", "_off")]


def train(work, model, arm, minutes):
    """Trains one arm in a folder of its own and returns its state."""
    folder = f"{work}/{arm}"; os.makedirs(folder, exist_ok=True)
    for f in DATA:
        if not os.path.exists(f"{folder}/{f}"): os.symlink(os.path.abspath(f"{work}/{f}"), f"{folder}/{f}")
    subprocess.run([sys.executable, f"{HERE}/train.py", "--work", folder, "--init", model, "--minutes", str(minutes), "--experts", arm, "--batch", "65536", "--compile-limit", "60"], check=True)
    return torch.load(folder + "/target.pt", map_location="cpu")


def rounded(work, model, arm, state, tok):
    """The arm's model as it would be published."""
    folder = f"{work}/{arm}/model"; shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
    shutil.copy(model + "/config.json", folder); save_sharded(target_tensors(state["model"], tok.token_to_id("<|MASK|>")), folder, 1)
    return Model(folder, "cuda" if torch.cuda.is_available() else "cpu")


def with_bf16_experts(m, state):
    """The model with the experts of `state`, a Target's, rounded to BF16 only."""
    for i, l in enumerate(m.ls):
        if "ex" in l:
            for e in range(len(l["ex"])): g, u = b16(state[f"layers.{i}.gu"][e]).to(m.dev).chunk(2); l["ex"][e] = [g, u, b16(state[f"layers.{i}.down"][e]).to(m.dev)]
    return m


def main():
    ap = argparse.ArgumentParser(); ap.add_argument("--work", required=True); ap.add_argument("--model", required=True)
    ap.add_argument("--minutes", type=float, default=1); ap.add_argument("--bpb-kb", type=int, default=200); a = ap.parse_args()
    tok = tokenizers.Tokenizer.from_file(a.model + "/tokenizer.json"); text = open(a.model + "/heldout/text.txt").read()
    bits = lambda m: bpb(m, tok, text, a.bpb_kb * 1000)[0]; res = {"minutes": a.minutes, "bpb_kb": a.bpb_kb}
    for arm in ("mxfp4", "bf16"):
        state = train(a.work, a.model, arm, a.minutes); m = rounded(a.work, a.model, arm, state, tok)
        res[arm] = {"steps": state["step"], "tokens": state["tokens"]}
        if arm == "mxfp4": res["bpb_mxfp4"] = bits(m)
        else: res["bpb_bf16_rounded_afterwards"] = bits(m); res["bpb_bf16"] = bits(with_bf16_experts(m, state["model"]))
        print(time.strftime("%H:%M:%S"), json.dumps(res), flush=True)
    path = a.model + "/training/figures.json"; figures = json.load(open(path))
    json.dump(figures | {"formats": res}, open(path, "w"), indent=1)


if __name__ == "__main__": main()
