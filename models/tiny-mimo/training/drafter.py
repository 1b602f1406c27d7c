"""Train the DFlash block drafter on the target's own outputs (self-distillation).

usage: drafter.py --work DIR --model MODEL_DIR --gen-minutes 2.5 --minutes 9
The target generates greedy and temperature-1 continuations of training prompts (code and chat); its residual taps
over those sequences and over plain training text are cached once; the drafter then trains on random anchors.
"""
import argparse, os, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from train import Target, Muon, Stream, rms, rope, rope_tab, EPS, D, V, BF
from model import Model, StaticCache

LAYERS, H, KH, HD, FF, BLOCK, WIN, VS, THETA, TAPS = 2, 8, 4, 128, 768, 8, 1024, 0.612, 1e4, [0, 1, 2, 4, 5]
GAMMA = 5.0


def rmsh(x, w): return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS) * w).to(BF)


class DLayer(nn.Module):
    def __init__(s):
        super().__init__(); P = nn.Parameter
        s.n1, s.n2, s.qn, s.kn, s.sink = P(torch.ones(D)), P(torch.ones(D)), P(torch.ones(HD)), P(torch.ones(HD)), P(torch.zeros(H))
        s.q, s.k, s.v = (P(torch.randn(n * HD, D) / 16) for n in (H, KH, KH)); s.o = P(torch.zeros(D, H * HD))
        s.gate, s.up, s.down = P(torch.randn(FF, D) / 16), P(torch.randn(FF, D) / 16), P(torch.zeros(D, FF))


class Drafter(nn.Module):
    def __init__(s):
        super().__init__()
        s.fc, s.hn, s.norm = nn.Parameter(torch.randn(D, D * len(TAPS)) / 36), nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        s.mask = nn.Parameter(torch.randn(D) * 0.1); s.layers = nn.ModuleList(DLayer() for _ in range(LAYERS))

    def forward(s, taps, anchors, embed, ids):
        """taps [B,T,5D] bf16, anchors [B,A] positions; returns hidden [B,A,7,D]."""
        B, T, _ = taps.shape; A = anchors.shape[1]; dev = taps.device
        f = rms((taps @ s.fc.to(BF).T).float(), s.hn)
        cs = rope_tab(T + BLOCK, THETA, dev)
        pos = anchors[..., None] + torch.arange(BLOCK, device=dev)
        bc = tuple(c[pos].unsqueeze(-2).to(BF) for c in cs)            # [B,A,8,1,32]
        def brope(x):
            a, b = x[..., :32], x[..., 32:64]
            return torch.cat([a * bc[0] - b * bc[1], b * bc[0] + a * bc[1], x[..., 64:]], -1)
        e = F.embedding(ids.gather(1, anchors), embed)
        x = torch.cat([e[:, :, None], s.mask.expand(B, A, BLOCK - 1, D)], 2)
        j = torch.arange(T, device=dev)
        vis = torch.where(j[None, None] < anchors[..., None], 0.0, -1e9).to(BF)      # window 1024 never binds for T <= 1017
        vis = vis[:, None, None, :, None].expand(B, 1, 1, A, BLOCK, T).reshape(B, 1, 1, A * BLOCK, T)
        for l in s.layers:
            h = rms(x, l.n1)
            q = brope(rmsh((h @ l.q.to(BF).T).view(B, A, BLOCK, H, HD), l.qn)) * HD ** -0.5
            kb = brope(rmsh((h @ l.k.to(BF).T).view(B, A, BLOCK, KH, HD), l.kn)); vb = (h @ l.v.to(BF).T).view(B, A, BLOCK, KH, HD) * VS
            kc = rope(rmsh((f @ l.k.to(BF).T).view(B, T, KH, HD), l.kn), tuple(c[:T] for c in cs)); vc = (f @ l.v.to(BF).T).view(B, T, KH, HD) * VS
            G = H // KH
            qg = q.view(B, A, BLOCK, KH, G, HD)
            qx = qg.permute(0, 3, 4, 1, 2, 5).reshape(B * KH, G * A * BLOCK, HD)
            sc = torch.bmm(qx, kc.permute(0, 2, 3, 1).reshape(B * KH, HD, T)).view(B, KH, G, A * BLOCK, T) + vis
            qb = qg.permute(0, 1, 3, 4, 2, 5).reshape(B * A * KH, G * BLOCK, HD)
            kbt = kb.permute(0, 1, 3, 4, 2).reshape(B * A * KH, HD, BLOCK)
            sb = torch.bmm(qb, kbt).view(B, A, KH, G, BLOCK, BLOCK).permute(0, 2, 3, 1, 4, 5).reshape(B, KH, G, A * BLOCK, BLOCK)
            z = l.sink.to(BF).view(1, KH, G, 1, 1).expand(B, KH, G, A * BLOCK, 1)
            p = torch.cat([sc, sb, z], -1).softmax(-1)
            o = torch.bmm(p[..., :T].reshape(B * KH, G * A * BLOCK, T), vc.permute(0, 2, 1, 3).reshape(B * KH, T, HD)).view(B, KH, G, A, BLOCK, HD)
            pb = p[..., T:T + BLOCK].reshape(B, KH, G, A, BLOCK, BLOCK).permute(0, 3, 1, 2, 4, 5).reshape(B * A * KH, G * BLOCK, BLOCK)
            ob = torch.bmm(pb, vb.permute(0, 1, 3, 2, 4).reshape(B * A * KH, BLOCK, HD)).view(B, A, KH, G, BLOCK, HD)
            o = o.permute(0, 3, 4, 1, 2, 5) + ob.permute(0, 1, 4, 2, 3, 5)
            x = x + o.reshape(B, A, BLOCK, H * HD) @ l.o.to(BF).T
            h = rms(x, l.n2)
            x = x + (F.silu(h @ l.gate.to(BF).T) * (h @ l.up.to(BF).T)) @ l.down.to(BF).T
        return rms(x, s.norm)[:, :, 1:]


@torch.no_grad()
def generate(m, prompt, new, temp, real, gen):
    """Plain batched decoding with the reference model; returns prompt + continuation. temp [B,1], 0 = greedy."""
    out = [prompt]; h, _, c = m.hidden(prompt); c = StaticCache(c, prompt.shape[1] + new)
    for _ in range(new):
        lg = m.logits(h[:, -1])[:, :real]
        g = -torch.empty_like(lg).exponential_(generator=gen).log()
        nx = (lg / temp.clamp_min(1e-3) + g * (temp > 0)).argmax(-1, keepdim=True)
        out.append(nx); h, _, c = m.hidden(nx, c)
    return torch.cat(out, 1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--model", required=True); ap.add_argument("--seed", type=int, default=3)
    ap.add_argument("--text", type=int, default=160); ap.add_argument("--batch", type=int, default=192); ap.add_argument("--gen-minutes", type=float, default=2.5); ap.add_argument("--minutes", type=float, default=9); ap.add_argument("--lr", type=float, default=0.02)
    a = ap.parse_args()
    dev = "cuda" if torch.cuda.is_available() else "cpu"; torch.manual_seed(a.seed)
    m = Model(a.model, dev); t = Target().to(dev)
    # the frozen target used for taps is the exported (quantised) one, in the fast training layout
    with torch.no_grad():
        t.embed.copy_(m.embed); t.head.copy_(m.head); t.norm.copy_(m.norm)
        for l, x in zip(t.layers, m.ls):
            for n in ("n1", "n2", "q", "k", "v", "o"): getattr(l, n).copy_(x[n])
            if l.sink is not None: l.sink.copy_(x["sink"])
            if "mlp" in x: l.gu.copy_(torch.cat(x["mlp"][:2])); l.down.copy_(x["mlp"][2])
            else:
                l.router.copy_(x["router"]); l.bias.copy_(x["bias"])
                l.gu.copy_(torch.stack([torch.cat(e[:2]) for e in x["ex"]])); l.down.copy_(torch.stack([e[2] for e in x["ex"]]))
    t.eval().requires_grad_(False)
    T = 384; seqs = []; t0 = time.time(); gen = torch.Generator(dev).manual_seed(a.seed)
    import tokenizers
    tk = tokenizers.Tokenizer.from_file(a.model + "/tokenizer.json"); im_end, think = tk.token_to_id("<|im_end|>"), tk.token_to_id("</think>")
    code = Stream(a.work, "train", 0.6, a.seed); ct, co = np.load(a.work + "/chat.npy"), np.load(a.work + "/chat_off.npy"); r = np.random.default_rng(a.seed)
    B, k = a.batch, 0
    while k < 2 or time.time() - t0 < a.gen_minutes * 60:
        if k % 2 == 0: P = int(r.choice([64, 128, 192])); pr = code.get(B, P)
        else:   # chat prompts cut right after the generation prompt; batch those of equal length
            rows = {}
            for i in r.permutation(len(co) - 1):
                sq = ct[co[i]:co[i + 1]]; w = np.flatnonzero(sq == think)
                if len(w) and w[0] < 200: rows.setdefault(int(w[0]) + 1, []).append(sq[:w[0] + 1].astype(np.int64))
                if max(map(len, rows.values()), default=0) >= 96: break
            pr = torch.from_numpy(np.stack(max(rows.values(), key=len)))
        pr = pr.to(dev)[:B]; temp = torch.tensor([[1.0 if r.random() < 0.35 else 0.0] for _ in pr], device=dev)
        g = generate(m, pr, min(T + 1 - pr.shape[1], 160 if k % 2 == 0 else 130), temp, tk.get_vocab_size(), gen)
        for s, p in zip(g, [pr.shape[1]] * len(g)):
            s = s.cpu(); e = (s[p:] == im_end).nonzero()
            s = s[:p + int(e[0]) + 1] if len(e) and k % 2 else s
            if len(s) >= p + 12: seqs.append((s, max(8, p - 16), len(s)))
        k += 1; print(f"{time.strftime('%H:%M:%S')} generated {k} batches, {len(seqs)} sequences, {sum(e - b for _, b, e in seqs)} tokens", flush=True)
    n_gen = sum(e - b for _, b, e in seqs)
    for s in code.get(a.text, T): seqs.append((s, 8, T))
    ids = torch.zeros(len(seqs), T + 1, dtype=torch.long)
    for i, (s, _, _) in enumerate(seqs): ids[i, :min(len(s), T + 1)] = s[:T + 1]
    lo = torch.tensor([b for _, b, _ in seqs]); hi = torch.tensor([min(e, T) for _, _, e in seqs]) - BLOCK
    keep = hi > lo + 1; ids, lo, hi = ids[keep][:, :T], lo[keep], hi[keep]
    taps, hid = [], []
    with torch.no_grad():
        for c in ids.split(16): h, tp = t.hidden(c.to(dev), False, TAPS); taps.append(torch.cat(tp, -1).cpu()); hid.append(h.cpu())
    taps, hid = torch.cat(taps), torch.cat(hid); print(time.strftime("%H:%M:%S"), "cached", tuple(taps.shape), flush=True)
    d = Drafter().to(dev); mats = [p for n, p in d.named_parameters() if p.ndim == 2]; small = [p for p in d.parameters() if p.ndim == 1]
    mu, ad = Muon(mats, a.lr), torch.optim.AdamW(small, lr=0.003, betas=(0.9, 0.95), weight_decay=0)
    wk = torch.exp(-torch.arange(BLOCK - 1) / GAMMA).to(dev); t0 = saved = time.time(); step = 0; B, A = 8, 24; hb = t.head.to(BF)
    while (f := (time.time() - t0) / (a.minutes * 60)) < 1:
        lr = min(1, (step + 1) / 20) * (1 if f < 0.5 else max(0.02, (1 - f) / 0.5))
        i = torch.from_numpy(r.integers(0, len(ids), B)); an = (lo[i, None] + torch.rand(B, A) * (hi[i] - lo[i])[:, None]).long()
        x, tp, an_ = ids[i].to(dev), taps[i].to(dev), an.to(dev)
        h = d(tp, an_, t.embed, x)
        lp = an_[..., None] + torch.arange(1, BLOCK, device=dev)
        y = x.gather(1, lp.view(B, -1)).view(-1)
        lg = (h.reshape(-1, D) @ hb.T).float()
        with torch.no_grad():
            th = hid[i].to(dev).gather(1, (lp.view(B, -1) - 1)[..., None].expand(-1, -1, D)).view(-1, D); q = (th @ hb.T).float().softmax(-1)
        logp = lg.log_softmax(-1)
        ce = -(0.5 * logp.gather(1, y[:, None])[:, 0] + 0.5 * (q * logp).sum(-1)).view(B, A, -1)
        loss = (ce * wk).sum(-1).mean() / wk.sum(); loss.backward()
        mu.step(lr)
        for g in ad.param_groups: g["lr"] = 0.003 * lr
        ad.step()
        for p in d.parameters(): p.grad = None
        step += 1
        if step % 50 == 0:
            ok = (lg.argmax(-1) == y).view(B, A, -1).float().cumprod(-1)
            print(f"{time.strftime('%H:%M:%S')} step {step} f {f:.3f} loss {loss.item():.4f} tokens/round(batch) {1 + ok.sum(-1).mean():.2f}", flush=True)
        if time.time() - saved > 60: torch.save({"model": d.state_dict(), "step": step, "gen": n_gen}, a.work + "/draft.tmp"); os.replace(a.work + "/draft.tmp", a.work + "/draft.pt"); saved = time.time()
    torch.save({"model": d.state_dict(), "step": step, "gen": n_gen}, a.work + "/draft.pt"); print("done", step, flush=True)


if __name__ == "__main__": main()
