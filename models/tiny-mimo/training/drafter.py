"""Train the DFlash block drafter on the target's own outputs (self-distillation).

usage: drafter.py --work DIR --model MODEL_DIR --gen-minutes 1.5 --minutes 4 [--resume] [--no-decay]
The exported target continues training prompts (code and chat; 70 % of the rows greedily, the rest at temperature 1). Its
residual taps over those rows and over some training text are kept on the device; the drafter then trains on random anchors
in the continuations and in the text.
"""
import argparse, os, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
import tokenizers
from train import Target, Muon, Stream, attend, guard, rms, rope, rope_tab, BF
from model import Model, load_dir
from shape import *

H, KH, HD = DRAFT_HQ, DRAFT_HK, DRAFT_HD


DRAFT_NAMES = {"n1": "input_layernorm.weight", "n2": "post_attention_layernorm.weight", "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
               "o": "self_attn.o_proj.weight", "qn": "self_attn.q_norm.weight", "kn": "self_attn.k_norm.weight", "sink": "self_attn.attention_sink_bias",
               "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}      # a layer's parameters here -> in the checkpoint


class DLayer(nn.Module):
    def __init__(s):
        super().__init__(); P = nn.Parameter; g = D ** -0.5
        s.n1, s.n2, s.qn, s.kn, s.sink = P(torch.ones(D)), P(torch.ones(D)), P(torch.ones(HD)), P(torch.ones(HD)), P(torch.zeros(H))
        s.q, s.k, s.v = (P(torch.randn(n * HD, D) * g) for n in (H, KH, KH)); s.o = P(torch.zeros(D, H * HD))
        s.gate, s.up, s.down = P(torch.randn(DRAFT_FF, D) * g), P(torch.randn(DRAFT_FF, D) * g), P(torch.zeros(D, DRAFT_FF))


class Drafter(nn.Module):
    def __init__(s):
        super().__init__(); taps = D * len(TAPS)
        s.fc, s.hn, s.norm = nn.Parameter(torch.randn(D, taps) * taps ** -0.5), nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        s.mask = nn.Parameter(torch.randn(D) * 0.1); s.layers = nn.ModuleList(DLayer() for _ in range(DRAFT_L))

    def forward(s, taps, anchors, embed, ids):
        """taps [B,T,5D] bf16, anchors [B,A] positions; returns hidden [B,A,7,D]."""
        B, T, _ = taps.shape; A = anchors.shape[1]; dev = taps.device
        assert T <= DRAFT_WIN, "training rows longer than the drafter's window would need a window mask"
        f = rms(taps @ s.fc.to(BF).T, s.hn)
        cs = rope_tab(T + BLOCK, DRAFT_THETA, dev)
        pos = anchors[..., None] + torch.arange(BLOCK, device=dev)
        bc = tuple(c[pos].unsqueeze(-2) for c in cs)                   # [B,A,8,1,32]
        def brope(x):
            h = ROT // 2; a, b = x[..., :h].float(), x[..., h:ROT].float()
            return torch.cat([(a * bc[0] - b * bc[1]).to(BF), (b * bc[0] + a * bc[1]).to(BF), x[..., ROT:]], -1)
        e = F.embedding(ids.gather(1, anchors), embed).float()
        x = torch.cat([e[:, :, None], s.mask.expand(B, A, BLOCK - 1, D)], 2)
        j = torch.arange(T, device=dev)
        vis = torch.where(j[None, None] < anchors[..., None], 0.0, -1e9).to(BF)      # the window never binds: T <= DRAFT_WIN
        vis = vis[:, None, None, :, None].expand(B, 1, 1, A, BLOCK, T).reshape(B, 1, 1, A * BLOCK, T)
        empty = torch.full((1, 1, 1, 1, 1), -1e9, dtype=BF, device=dev).expand(B, KH, H // KH, A * BLOCK, 7)     # rows of T + 16 scores: aligned
        for l in s.layers:
            h = rms(x, l.n1)
            q = brope(rms((h @ l.q.to(BF).T).view(B, A, BLOCK, H, HD), l.qn)) * HD ** -0.5
            kb = brope(rms((h @ l.k.to(BF).T).view(B, A, BLOCK, KH, HD), l.kn)); vb = (h @ l.v.to(BF).T).view(B, A, BLOCK, KH, HD) * VS
            kc = rope(rms((f @ l.k.to(BF).T).view(B, T, KH, HD), l.kn), tuple(c[:T] for c in cs)); vc = (f @ l.v.to(BF).T).view(B, T, KH, HD) * VS
            G = H // KH
            qg = q.view(B, A, BLOCK, KH, G, HD)
            qx = qg.permute(0, 3, 4, 1, 2, 5).reshape(B * KH, G * A * BLOCK, HD)
            sc = torch.bmm(qx, kc.permute(0, 2, 3, 1).reshape(B * KH, HD, T)).view(B, KH, G, A * BLOCK, T) + vis
            qb = qg.permute(0, 1, 3, 4, 2, 5).reshape(B * A * KH, G * BLOCK, HD)
            kbt = kb.permute(0, 1, 3, 4, 2).reshape(B * A * KH, HD, BLOCK)
            sb = torch.bmm(qb, kbt).view(B, A, KH, G, BLOCK, BLOCK).permute(0, 2, 3, 1, 4, 5).reshape(B, KH, G, A * BLOCK, BLOCK)
            z = l.sink.to(BF).view(1, KH, G, 1, 1).expand(B, KH, G, A * BLOCK, 1)
            p = torch.cat([sc, sb, z, empty], -1).softmax(-1)
            o = torch.bmm(p[..., :T].reshape(B * KH, G * A * BLOCK, T), vc.permute(0, 2, 1, 3).reshape(B * KH, T, HD)).view(B, KH, G, A, BLOCK, HD)
            pb = p[..., T:T + BLOCK].reshape(B, KH, G, A, BLOCK, BLOCK).permute(0, 3, 1, 2, 4, 5).reshape(B * A * KH, G * BLOCK, BLOCK)
            ob = torch.bmm(pb, vb.permute(0, 1, 3, 2, 4).reshape(B * A * KH, BLOCK, HD)).view(B, A, KH, G, BLOCK, HD)
            o = o.permute(0, 3, 4, 1, 2, 5) + ob.permute(0, 1, 4, 2, 3, 5)
            x = x + o.reshape(B, A, BLOCK, H * HD) @ l.o.to(BF).T
            h = rms(x, l.n2)
            x = x + (F.silu(h @ l.gate.to(BF).T) * (h @ l.up.to(BF).T)) @ l.down.to(BF).T
        return rms(x, s.norm)[:, :, 1:]


def exported_drafter(model):
    """The parameters of MODEL/dflash, to go on from."""
    w = load_dir(model + "/dflash"); sd = {"fc": w["fc.weight"], "hn": w["hidden_norm.weight"], "norm": w["norm.weight"], "mask": torch.load(model + "/dflash/mask_embedding.pt")["embedding"]}
    return sd | {f"layers.{i}.{a}": w[f"layers.{i}.{b}"] for i in range(DRAFT_L) for a, b in DRAFT_NAMES.items()}


def load_target(model, dev):
    """The exported (quantised) target in the training layout, frozen, its matrices in BF16."""
    m, t = Model(model), Target()
    with torch.no_grad():
        t.embed.copy_(m.embed); t.head.copy_(m.head); t.norm.copy_(m.norm)
        for l, x in zip(t.layers, m.ls):
            for n in ("n1", "n2", "q", "k", "v", "o"): getattr(l, n).copy_(x[n])
            if l.sink is not None: l.sink.copy_(x["sink"])
            if l.dense: l.gu.copy_(torch.cat(x["mlp"][:2])); l.down.copy_(x["mlp"][2])
            else:
                l.router.copy_(x["router"]); l.bias.copy_(x["bias"])
                l.gu.copy_(torch.stack([torch.cat(e[:2]) for e in x["ex"]])); l.down.copy_(torch.stack([e[2] for e in x["ex"]]))
            for p in (l.q, l.k, l.v, l.o, l.gu, l.down): p.data = p.data.to(BF)
    t.head.data = t.head.data.to(BF)
    return t.to(dev).eval().requires_grad_(False)


@torch.no_grad()
def generate(t, prompt, new, temp, real, gen):
    """Batched decoding with a KV cache: prompt [B,P], temp [B,1] (0 = greedy) -> [B, P + new]."""
    B, P = prompt.shape; dev = prompt.device; total = P + new; G = HQ // HK
    ids = torch.cat([prompt, torch.zeros(B, new, dtype=torch.long, device=dev)], 1)
    padded = F.pad(prompt, (0, -P % 128)); cs = t.rope(padded.shape[1], dev)
    x = F.embedding(padded, t.embed).float(); cache = []
    for i, l in enumerate(t.layers):
        q, k, v = l.qkv(x, cs[SWA[i]]); kc, vc = (torch.zeros(B, HK, total, d, dtype=BF, device=dev) for d in (DQ, DV))
        kc[:, :, :P], vc[:, :, :P] = k[:, :P].transpose(1, 2), v[:, :P].transpose(1, 2); cache.append((kc, vc))
        x, _ = l.mix(x, attend(q, k, v, l.window, l.sink), l.gu, l.down)
    h = rms(x[:, P - 1], t.norm); cs = t.rope(-(-total // 128) * 128, dev)
    for n in range(P, total):
        lg = (h @ t.head.T)[:, :real].float()
        g = -torch.empty_like(lg).exponential_(generator=gen).log()
        ids[:, n] = (lg / temp.clamp_min(1e-3) + g * (temp > 0)).argmax(-1)
        x = F.embedding(ids[:, n:n + 1], t.embed).float()
        for i, (l, (kc, vc)) in enumerate(zip(t.layers, cache)):
            q, k, v = l.qkv(x, tuple(c[n:n + 1] for c in cs[SWA[i]])); kc[:, :, n], vc[:, :, n] = k[:, 0], v[:, 0]
            lo = max(0, n + 1 - l.window) if l.window else 0
            s = torch.matmul(q.view(B, HK, G, DQ), kc[:, :, lo:n + 1].transpose(-1, -2)).float() * DQ ** -0.5
            if l.window: s = torch.cat([s, l.sink.view(1, HK, G, 1).expand(B, -1, -1, 1)], -1)
            p = s.softmax(-1)[..., :n + 1 - lo].to(BF)
            x, _ = l.mix(x, torch.matmul(p, vc[:, :, lo:n + 1]).reshape(B, 1, HQ * DV), l.gu, l.down)
        h = rms(x[:, -1], t.norm)
    return ids


class ChatPrompts:
    """Chat prompts cut right after the generation prompt; one batch holds prompts of one length."""
    def __init__(s, work, think, seed):
        s.t, s.o = np.load(work + "/chat.npy"), np.load(work + "/chat_off.npy"); s.r = np.random.default_rng(seed)
        at = np.flatnonzero(s.t == think); row = np.searchsorted(s.o, at, "right") - 1
        row, first = np.unique(row, return_index=True); s.begin, s.len = s.o[row], at[first] - s.o[row] + 1
    def get(s, n):
        P = s.r.choice(s.len[s.len <= 200]); rows = s.r.permutation(np.flatnonzero(s.len == P))[:n]
        return torch.from_numpy(s.t[s.begin[rows][:, None] + np.arange(P)].astype(np.int64))


@torch.no_grad()
def features(t, ids):
    """What the drafter and its loss read of the frozen target, for rows ids [N,T]: taps [N,T,5D] and final norm [N,T,D], BF16."""
    taps, hid = (torch.empty(*ids.shape, w, dtype=BF, device=ids.device) for w in (D * len(TAPS), D))
    for i in range(0, len(ids), 64):
        hid[i:i + 64], tap, _ = t.hidden(ids[i:i + 64].long(), False, TAPS); taps[i:i + 64] = torch.cat(tap, -1)
    return taps, hid


def collect(t, code, chat, a, real, stop, dev):
    """Generate for --gen-minutes: pools of (ids [N,T], first anchor [N], last anchor [N], taps, final norm), keyed by T; and the token count."""
    r, gen = np.random.default_rng(a.seed), torch.Generator(dev).manual_seed(a.seed)
    rows, t0, n, count = {a.seq: [], 2 * a.seq: []}, time.time(), 0, 0
    while n < 4 or time.time() - t0 < a.gen_minutes * 60:
        T = 2 * a.seq if n % 4 == 2 else a.seq; new = T * 3 // 8 if T == a.seq else T // 4
        if n % 2: pr = chat.get(a.batch).to(dev); new = min(new, T - pr.shape[1])
        else: pr = code.get(a.batch, int(r.integers(T // 8, T - new + 1) if T == a.seq else r.integers(T // 2, T - new + 1)))
        B, P = pr.shape; temp = (torch.rand(B, 1, generator=gen, device=dev) < 0.3).float()
        g = generate(t, pr, new, temp, real, gen); done = torch.isin(g[:, P:], stop)
        end = P + torch.where(done.any(1), done.int().argmax(1) + 1, new)         # one past the last token kept
        lo = torch.full_like(end, max(8, P - 16)); hi = end - BLOCK; keep = hi > lo
        rows[T].append((F.pad(g, (0, T - P - new))[keep].int(), lo[keep], hi[keep])); count += (end - P)[keep].sum(); n += 1
        if n % 10 == 0 or n < 5: print(f"{time.strftime('%H:%M:%S')} generated {n} batches, {count.item()} tokens, {(time.time() - t0) / n:.2f} s each", flush=True)
    for T, v in rows.items():                                                          # and some training text as it is
        n_text = int(a.text * sum(len(x[0]) for x in v)); full = torch.full((n_text,), 8, device=dev)
        v.append((code.get(n_text, T).int(), full, full + T - BLOCK - 8))
    pools = {T: tuple(map(torch.cat, zip(*v))) for T, v in rows.items()}
    return {T: (*p, *features(t, p[0])) for T, p in pools.items()}, int(count)


def step_loss(d, t, ids, taps, hid, anchors, weight):
    """Half hard cross-entropy on the sequence, half soft on the target's distribution; also tokens per round at the anchors."""
    B, A = anchors.shape; n = BLOCK - 1
    h = d(taps, anchors, t.embed, ids)
    at = (anchors[..., None] + torch.arange(1, BLOCK, device=ids.device)).view(B, -1); y = ids.gather(1, at).view(-1)
    lg = (h.reshape(-1, D) @ t.head.T).float(); logp = lg.log_softmax(-1)
    with torch.no_grad():
        th = hid.gather(1, (at - 1)[..., None].expand(-1, -1, D)).view(-1, D); q = (th @ t.head.T).float().softmax(-1)
        hit = (lg.argmax(-1) == y).view(B, A, n).float().cumprod(-1).sum(-1).mean() + 1
    ce = -(0.5 * logp.gather(1, y[:, None])[:, 0] + 0.5 * (q * logp).sum(-1)).view(-1, n)
    return (ce * weight).sum(-1).mean() / weight.sum(), hit


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--model", required=True); ap.add_argument("--seed", type=int, default=3)
    ap.add_argument("--seq", type=int, default=512, help="row length, a multiple of 256; a quarter of the rows is twice as long"); ap.add_argument("--batch", type=int, default=1024, help="rows per generation batch")
    ap.add_argument("--text", type=float, default=0.3, help="rows of training text per generated row")
    ap.add_argument("--resume", action="store_true", help="go on from MODEL_DIR/dflash"); ap.add_argument("--no-decay", action="store_true", help="constant learning rate: another run will --resume")
    ap.add_argument("--rows", type=int, default=48, help="rows of --seq per step"); ap.add_argument("--anchors", type=int, default=64, help="anchors per row")
    ap.add_argument("--gen-minutes", type=float, default=1.5); ap.add_argument("--minutes", type=float, default=4); ap.add_argument("--lr", type=float, default=0.02)
    a = ap.parse_args()
    dev = "cuda" if torch.cuda.is_available() else "cpu"; torch.manual_seed(a.seed)
    t = load_target(a.model, dev); tk = tokenizers.Tokenizer.from_file(a.model + "/tokenizer.json"); real = tk.get_vocab_size()
    stop = torch.tensor([tk.token_to_id(x) for x in ("<|im_end|>", "<|endoftext|>")], device=dev)
    code, held = Stream(a.work, "train", 0.5, a.seed, dev), Stream(a.work, "heldout", 0.0, a.seed, dev)
    P = a.seq // 4; hx = generate(t, held.get(128, P), P, torch.zeros(128, 1, device=dev), real, None)      # greedy, held out
    hf = features(t, hx); han = P + torch.rand(128, 16, device=dev).mul(P - BLOCK).long()
    pools, n_gen = collect(t, code, ChatPrompts(a.work, tk.token_to_id("</think>"), a.seed), a, real, stop, dev)
    d = Drafter().to(dev)
    if a.resume: d.load_state_dict(exported_drafter(a.model))
    every = list(d.parameters()); small = [p for p in every if p.ndim == 1]
    muon, adam = Muon([p for p in every if p.ndim == 2], a.lr), torch.optim.AdamW(small, lr=0.003, betas=(0.9, 0.95), weight_decay=0, fused=dev == "cuda")
    weight = torch.exp(-torch.arange(BLOCK - 1, device=dev) / GAMMA); f = 0.0; step = 0; t0 = last = saved = time.time()
    while f < 1:
        lr = min(1, (step + 1) / 50, 1 if a.no_decay else (1 - f) / 0.6)
        T = 2 * a.seq if step % 4 == 2 else a.seq; ids, lo, hi, taps, hid = pools[T]
        i = torch.randint(0, len(ids), (a.rows * a.seq // T,), device=dev); lo, hi = lo[i, None], hi[i, None]
        anchors = lo + (torch.rand(len(i), a.anchors, device=dev) * (hi - lo + 1)).long().clamp_max(hi - lo)
        loss, hit = step_loss(d, t, ids[i].long(), taps[i], hid[i], anchors, weight); loss.backward()
        guard(every); muon.step(lr)
        for g in adam.param_groups: g["lr"] = 0.003 * lr
        adam.step(); d.zero_grad(set_to_none=True)
        step += 1; f = (time.time() - t0) / (a.minutes * 60)
        if step % 500 == 0 or step == 5:
            msg = f"{time.strftime('%H:%M:%S')} step {step} f {f:.3f} loss {loss.item():.4f} tokens/round {hit.item():.2f}"
            with torch.no_grad(): msg += f" held-out greedy {step_loss(d, t, hx, *hf, han, weight)[1].item():.2f}"
            print(f"{msg} {(time.time() - last) / (495 if step == 500 else min(step, 500)) * 1e3:.0f} ms/step", flush=True); last = time.time()
            if last - saved > 60: save(d, a.work, step, n_gen); saved = last
    save(d, a.work, step, n_gen); print("done", step, flush=True)


def save(d, work, step, n_gen):
    torch.save({"model": {k: v.to(BF) for k, v in d.state_dict().items()}, "step": step, "gen": n_gen}, work + "/draft.tmp"); os.replace(work + "/draft.tmp", work + "/draft.pt")


if __name__ == "__main__": main()
