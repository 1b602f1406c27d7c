"""Pre-training, MXFP4 quantisation-aware training and chat tuning of the target in one wall-clock-bounded run.

usage: train.py --work DIR --minutes 22 [--resume]
Learning rate, QAT switch and data mix are functions of elapsed time / --minutes.
"""
import argparse, math, os, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from quantize import MxSte

D, L, HQ, HK, DQ, DV, ROT, WIN, VS, E, K, FF, DFF, V, EPS = 256, 6, 8, 4, 192, 128, 64, 128, 0.612, 16, 4, 128, 768, 4096, 1e-5
SWA = [0, 1, 1, 1, 1, 0]
BF = torch.bfloat16


def rms(x, w): return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w).to(BF)


def rope_tab(T, theta, dev, start=0):
    f = theta ** (-torch.arange(0, ROT, 2, dtype=torch.float64) / ROT)
    a = torch.outer(torch.arange(start, start + T, dtype=torch.float64), f).float().to(dev)
    return a.cos(), a.sin()


def rope(x, cs):                      # x [..., T, H, dim]
    c, s = cs[0][:, None].to(x.dtype), cs[1][:, None].to(x.dtype); h = ROT // 2
    a, b = x[..., :h], x[..., h:ROT]
    return torch.cat([a * c - b * s, b * c + a * s, x[..., ROT:]], -1)


class Dispatch(torch.autograd.Function):   # gather token rows into expert order; the backward is a gather too
    @staticmethod
    def forward(ctx, x, order, inv): ctx.save_for_backward(inv); return x[order // K]
    @staticmethod
    def backward(ctx, g): return g[ctx.saved_tensors[0]].view(-1, K, g.shape[-1]).sum(1), None, None


class Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, order, inv): ctx.save_for_backward(order); return y[inv]
    @staticmethod
    def backward(ctx, g): return g[ctx.saved_tensors[0]], None, None


class BandSoftmax(torch.autograd.Function):
    """In-place masked softmax whose column 0, never visible inside a chunk's band, carries the sink logit."""
    @staticmethod
    def forward(ctx, s, mask, sink):
        s.add_(mask); s[..., 0] = sink.to(s.dtype)[:, None]
        p = torch.softmax(s, -1); ctx.save_for_backward(p); return p
    @staticmethod
    def backward(ctx, g):
        p, = ctx.saved_tensors
        gs = torch._softmax_backward_data(g, p, -1, p.dtype)
        gk = gs[..., 0].float().sum((0, 2)); gs[..., 0] = 0
        return gs, None, gk


def attend(q, k, v, window, sink):
    """Causal (optionally banded) attention. q [B,T,HQ,DQ], k [B,T,HK,DQ], v [B,T,HK,DV]; T a multiple of 128."""
    B, T = q.shape[:2]; G = HQ // HK; C = 128
    if not window:
        kk, vv = (t.transpose(1, 2).repeat_interleave(G, 1) for t in (k, F.pad(v, (0, DQ - DV))))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), kk, vv, is_causal=True, scale=DQ ** -0.5)
        return o[..., :DV].transpose(1, 2).reshape(B, T, HQ * DV)
    n = T // C
    pad = lambda t: torch.cat([torch.zeros_like(t[:, :C]), t], 1)
    kk, vv = (torch.cat([p[:, :T].reshape(B * n, C, HK, -1), p[:, C:].reshape(B * n, C, HK, -1)], 1) for p in (pad(k), pad(v)))
    vv[:, 0] = 0
    i = torch.arange(C, device=q.device)[:, None] + C; j = torch.arange(2 * C, device=q.device)[None]
    ok = (j <= i) & (j > i - window)
    mask = torch.where(torch.stack([ok & (j >= C)] + [ok] * (n - 1)), 0.0, -1e9).to(q.dtype).repeat(B, 1, 1)[:, None]
    b, S, t = B * n, 2 * C, C
    qh = (q * DQ ** -0.5).reshape(b, C, HK, G, DQ).permute(0, 2, 3, 1, 4).reshape(b * HK, G * t, DQ)
    kh = kk.permute(0, 2, 3, 1).reshape(b * HK, DQ, S)
    vh = vv.permute(0, 2, 1, 3).reshape(b * HK, S, DV)
    p = BandSoftmax.apply(torch.bmm(qh, kh).view(b, HQ, t, S), mask, sink)
    o = torch.bmm(p.view(b * HK, G * t, S), vh)
    return o.view(b, HK, G, t, DV).permute(0, 3, 1, 2, 4).reshape(B, T, HQ * DV)


class Layer(nn.Module):
    def __init__(s, i):
        super().__init__(); s.i = i
        s.n1, s.n2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        s.q, s.k, s.v = (nn.Parameter(torch.randn(h, D) / 16) for h in (HQ * DQ, HK * DQ, HK * DV))
        s.o = nn.Parameter(torch.zeros(D, HQ * DV))
        s.sink = nn.Parameter(torch.zeros(HQ)) if SWA[i] else None
        if i == 0: s.gu, s.down = nn.Parameter(torch.randn(2 * DFF, D) / 16), nn.Parameter(torch.zeros(D, DFF))
        else:
            s.router = nn.Parameter(torch.randn(E, D) / 16)
            s.register_buffer("bias", torch.zeros(E)); s.register_buffer("load", torch.zeros(E), persistent=False)
            s.gu, s.down = nn.Parameter(torch.randn(E, 2 * FF, D) / 16), nn.Parameter(torch.zeros(E, D, FF))

    def forward(s, x, cs, qat):
        B, T, _ = x.shape
        h = rms(x, s.n1)
        q, k, v = h @ s.q.to(BF).T, h @ s.k.to(BF).T, h @ s.v.to(BF).T
        q, k = rope(q.view(B, T, HQ, DQ), cs), rope(k.view(B, T, HK, DQ), cs)
        o = attend(q, k, v.view(B, T, HK, DV) * VS, WIN if SWA[s.i] else 0, s.sink)
        x = x + o @ s.o.to(BF).T
        h = rms(x, s.n2).view(B * T, D)
        if s.i == 0:
            g, u = (h @ s.gu.to(BF).T).chunk(2, -1)
            return x + ((F.silu(g) * u) @ s.down.to(BF).T).view(B, T, D)
        sc = torch.sigmoid(h.float() @ s.router.T)
        idx = (sc.detach() + s.bias).topk(K, -1).indices
        w = sc.gather(1, idx); w = w / (w.sum(-1, keepdim=True) + 1e-20)
        flat = idx.reshape(-1); order = flat.argsort(stable=True); inv = torch.empty_like(order)
        inv[order] = torch.arange(order.numel(), device=x.device)
        cnt = torch.bincount(flat, minlength=E)
        if s.training: s.load += cnt
        gu, dn = (MxSte.apply(s.gu), MxSte.apply(s.down)) if qat else (s.gu, s.down)
        gu, dn = gu.to(BF).unbind(0), dn.to(BF).unbind(0)
        ys = []
        for e, xe in enumerate(Dispatch.apply(h, order, inv).split(cnt.tolist())):
            g, u = (xe @ gu[e].T).chunk(2, -1)
            ys.append((F.silu(g) * u) @ dn[e].T)
        y = Combine.apply(torch.cat(ys), order, inv).view(B * T, K, D)
        return x + torch.bmm(w.to(BF)[:, None], y).view(B, T, D)


class Target(nn.Module):
    def __init__(s):
        super().__init__()
        s.embed = nn.Parameter(torch.randn(V, D) * 0.3); s.head = nn.Parameter(torch.zeros(V, D))
        s.norm = nn.Parameter(torch.ones(D)); s.layers = nn.ModuleList(Layer(i) for i in range(L))

    def hidden(s, ids, qat=False, taps=None):
        x = F.embedding(ids, s.embed); T = ids.shape[1]
        full, swa = rope_tab(T, 1e7, x.device), rope_tab(T, 1e4, x.device); out = []
        for i, l in enumerate(s.layers):
            x = l(x, swa if SWA[i] else full, qat)
            if taps and i in taps: out.append(x.to(BF))
        return rms(x, s.norm), out

    def loss(s, ids, qat):
        h, _ = s.hidden(ids[:, :-1], qat)
        return F.cross_entropy((h.view(-1, D) @ s.head.to(BF).T).float(), ids[:, 1:].reshape(-1))


def newton_schulz(g, steps=5):
    x = g.to(BF); tr = x.shape[-2] > x.shape[-1]
    if tr: x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(BF)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tr else x


class Muon:
    def __init__(s, params, lr, wd=0.01): s.ps, s.lr, s.wd, s.m = list(params), lr, wd, {}
    @torch.no_grad()
    def step(s, scale):
        for i, p in enumerate(s.ps):
            if p.grad is None: continue
            m = s.m.setdefault(i, torch.zeros_like(p)); m.lerp_(p.grad, 0.05)
            u = newton_schulz(p.grad.lerp(m, 0.95)).float()
            lr = s.lr * scale
            p.mul_(1 - lr * s.wd).add_(u, alpha=-lr * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


class Stream:
    """Random windows; a share starts at document starts, the rest anywhere."""
    def __init__(s, work, name, aligned, seed): 
        s.t, s.o = np.load(f"{work}/{name}.npy"), np.load(f"{work}/{name}_off.npy"); s.al, s.r = aligned, np.random.default_rng(seed)
    def get(s, n, T):
        out = []
        while len(out) < n:
            st = int(s.r.choice(s.o[:-1])) if s.r.random() < s.al else int(s.r.integers(0, len(s.t) - T))
            if st + T <= len(s.t): out.append(s.t[st:st + T])
        return torch.from_numpy(np.stack(out).astype(np.int64))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--minutes", type=float, default=22); ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--batch", type=int, default=8); ap.add_argument("--resume", action="store_true"); ap.add_argument("--lr", type=float, default=0.02)
    ap.add_argument("--max-steps", type=int, default=10**9)
    a = ap.parse_args()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed); m = Target().to(dev); ck = a.work + "/target.pt"
    done = 0.0; step = 0; tokens = 0
    if a.resume and os.path.exists(ck):
        d = torch.load(ck); m.load_state_dict(d["model"]); done, step, tokens = d["progress"], d["step"], d["tokens"]
    mats = [p for l in m.layers for p in (l.q, l.k, l.v, l.o, l.gu, l.down)]
    ids = {id(p) for p in mats}; rest = [p for p in m.parameters() if id(p) not in ids]
    emb = [m.embed]; small = [p for p in rest if p is not m.embed]
    muon = Muon(mats, a.lr)
    adam = torch.optim.AdamW([{"params": emb, "lr": 0.01}, {"params": small, "lr": 0.003}], betas=(0.9, 0.95), weight_decay=0.0, fused=dev == "cuda")
    base = [g["lr"] for g in adam.param_groups]
    code, chat = Stream(a.work, "train", 0.25, a.seed + step), Stream(a.work, "chat", 1.0, a.seed + 1 + step)
    t0 = last = time.time(); saved = t0; p0 = done
    while True:
        f = p0 + (1 - p0) * (time.time() - t0) / (a.minutes * 60)
        if f >= 1 or step >= a.max_steps: break
        lr = min(1, (step + 1) / 30) * (1.0 if f < 0.45 else max(0.02, (1 - f) / 0.55))
        qat = f > 0.62
        share = 0.12 if f < 0.7 else 0.5
        T = 1024 if step % 10 == 9 else 512; n = a.batch * 512 // T
        nc = int(np.floor(n * share + np.random.default_rng(step).random()))
        x = torch.cat([s.get(c, T + 1) for s, c in ((code, n - nc), (chat, nc)) if c]).to(dev)
        loss = m.loss(x, qat); loss.backward()
        nn.utils.clip_grad_norm_(small + emb, 1.0)
        muon.step(lr)
        for g, b in zip(adam.param_groups, base): g["lr"] = b * lr
        adam.step()
        for p in m.parameters(): p.grad = None
        with torch.no_grad():
            for l in m.layers[1:]:
                l.bias += 0.004 * lr * torch.sign(l.load.mean() - l.load); l.worst = (l.load.max() / l.load.mean()).item(); l.load.zero_()
        step += 1; tokens += n * T; now = time.time()
        if step % 20 == 0:
            print(f"{time.strftime('%H:%M:%S')} step {step} f {f:.3f} loss {loss.item():.4f} tok {tokens/1e6:.2f}M {20*a.batch*512/(now-last):.0f} tok/s qat {qat} imb {max(l.worst for l in m.layers[1:]):.2f}", flush=True); last = now
        if now - saved > 90: save(m, ck, f, step, tokens); saved = time.time()
    save(m, ck, f, step, tokens); print("done", step, tokens, flush=True)


def save(m, ck, f, step, tokens):
    torch.save({"model": m.state_dict(), "progress": f, "step": step, "tokens": tokens}, ck + ".tmp"); os.replace(ck + ".tmp", ck)


if __name__ == "__main__": main()
