"""Figures for the model card, computed from the exported files: bits per byte, tokens per
round on the held-out prompts (greedy, temperature 1.0) and sample outputs.

usage: evaluate.py --work DIR --model MODEL_DIR [--new 96] [--bpb-kb 200] [--prompts 32] [--only bpb|rounds]

Tokens per round follows from one target sequence y: from anchor p the block drafter proposes 7 tokens, those equal to
y up to the first mismatch are committed plus one target token. With y = greedy output, or y sampled at temperature 1 as the
argmax of logits plus Gumbel noise, and the drafter choosing with the same noise, this is what the engine does round by round.
What MXFP4 experts cost in bits per byte: formats.py.
"""
import argparse, json, os, time
import torch, torch.nn.functional as F, tokenizers
from model import Model, Draft, StaticCache
from export import render


@torch.no_grad()
def bpb(m, tok, text, limit):
    text = text.encode()[:limit].decode(errors="ignore"); ids = tok.encode(text).ids; n = len(ids) // 512
    x = torch.tensor(ids[:n * 512], device=m.dev).view(n, 512); nll = 0.0; cnt = 0
    for c in x.split(8):
        lp = m.logits(m.hidden(c)[0]).log_softmax(-1)[:, :-1]; nll -= lp.gather(-1, c[:, 1:, None]).sum().item(); cnt += c[:, 1:].numel()
    nbytes = len(tok.decode(ids[:n * 512], skip_special_tokens=False).encode()) * cnt / (n * 512)
    return nll / 0.6931471805599453 / nbytes, nll / cnt


@torch.no_grad()
def roll(m, prompts, new, temp, real, seed):
    """Ragged batch from position 0: a row takes its prompt token while it has one, its own output afterwards. Returns the rows and,
    at temperature 1, the noise [B,T,real] that chose the token at each position."""
    g = torch.Generator(m.dev).manual_seed(seed); lens = [len(p) for p in prompts]; p0 = min(lens)
    noise = -torch.empty(len(prompts), max(lens) + new + 8, real, device=m.dev).exponential_(generator=g).log() if temp else None
    x = torch.tensor([p[:p0] for p in prompts], device=m.dev); h, _, c = m.hidden(x); c = StaticCache(c, max(lens) + new)
    for t in range(p0, max(lens) + new):
        lg = m.logits(h[:, -1])[:, :real]
        if temp: lg = lg + noise[:, t]
        nx = lg.argmax(-1)
        for b, p in enumerate(prompts):
            if t < len(p): nx[b] = p[t]
        x = torch.cat([x, nx[:, None]], 1); h, _, c = m.hidden(nx[:, None], c)
    return [x[b, :lens[b] + new] for b in range(len(prompts))], noise


@torch.no_grad()
def rounds(m, d, y, start, stop, noise):
    """Committed tokens and rounds for sequence y; the first anchor is the first generated token. Every anchor's block is drafted at once."""
    out = y.tolist(); end = next((i for i in range(start, len(y)) if out[i] in stop), len(y) - 1)
    if end == start: return 0, 0
    _, taps, _ = m.hidden(y[None], None, d.taps); at = torch.arange(start, end, device=m.dev); lg, h = d.draft(d.context(taps), y[at], at)
    lg = lg + d.markov(h, F.pad(y, (0, 8))[at[:, None] + torch.arange(7, device=m.dev)])      # a draft counts where those before it are y's
    if noise is not None: lg = lg[..., :noise.shape[-1]] + noise[at[:, None] + torch.arange(1, 8, device=m.dev)]
    drafts = lg.argmax(-1).tolist(); p, n, k = start, 0, 0
    while p < end:
        dr, acc = drafts[p - start], 0
        while acc < 7 and p + acc + 1 < end and dr[acc] == out[p + acc + 1]: acc += 1
        if acc < 7 and p + acc + 1 < end or acc == 7: n += acc + 1; k += 1     # a round cut short by the end is not counted
        p += acc + 1
    return n, k


def main():
    ap = argparse.ArgumentParser(); ap.add_argument("--work", required=True); ap.add_argument("--model", required=True)
    ap.add_argument("--only", choices=["bpb", "rounds"]); ap.add_argument("--prompts", type=int, default=32); ap.add_argument("--new", type=int, default=96); ap.add_argument("--bpb-kb", type=int, default=200); a = ap.parse_args()
    tok = tokenizers.Tokenizer.from_file(a.model + "/tokenizer.json"); m = Model(a.model, "cuda" if torch.cuda.is_available() else "cpu"); d = Draft(a.model + "/dflash", m); res = {}; real = tok.get_vocab_size()
    code = [json.loads(l)["prompt"] for l in open(a.model + "/heldout/code.jsonl")]
    chat = [render(json.loads(l)["messages"], False) for l in open(a.model + "/heldout/chat.jsonl")]
    stop = {tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|im_end|>")}; samples = []
    for kind, ps in (("code", code), ("chat", chat)) if a.only != "bpb" else ():
        ids = sorted([tok.encode(p).ids for p in ps[:a.prompts]], key=len)
        for name, temp in (("greedy", 0), ("t1", 1)):
            N = R = 0
            for i in range(0, len(ids), 32):
                b = ids[i:i + 32]
                ys, noise = roll(m, b, a.new, temp, real, 7 + i)
                for row, (p, y) in enumerate(zip(b, ys)):
                    n, k = rounds(m, d, y, len(p), stop, None if noise is None else noise[row]); N += n; R += k
                    if len(samples) < 60: samples.append({"kind": kind, "mode": name, "prompt": tok.decode(p, skip_special_tokens=False)[-300:], "output": tok.decode(y[len(p):].tolist(), skip_special_tokens=False)})
            res[f"tokens_per_round_{kind}_{name}"] = round(N / max(R, 1), 3); print(time.strftime("%H:%M:%S"), kind, name, res[f"tokens_per_round_{kind}_{name}"], "rounds", R, flush=True)
    if a.only != "bpb": json.dump(samples, open(a.work + "/samples.json", "w"), indent=1); res["new"], res["prompts"] = a.new, a.prompts
    if a.only != "rounds":
        text = open(a.model + "/heldout/text.txt").read(); res["bpb_kb"] = a.bpb_kb
        res["bpb"], res["nll_token"] = bpb(m, tok, text, a.bpb_kb * 1000)
        state = torch.load(a.work + "/target.pt", map_location="cpu")
        if "improved" in state: res["polish_improved"] = state["improved"]
    path = a.model + "/training/figures.json"; old = json.load(open(path)) if a.only and os.path.exists(path) else {}
    stale = ["bpb_engine", "by_engine"] + [k for k in old if k.startswith("tokens_per_round")]      # of another build
    for k in stale: old.pop(k, None)
    json.dump(old | res, open(path, "w"), indent=1); print(res, flush=True)


if __name__ == "__main__": main()
