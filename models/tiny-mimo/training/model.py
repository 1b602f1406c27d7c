"""Readable reference of the exported model: reads the checkpoint files and follows the engine's rounding points.

Residual fp32; every GEMM has bf16 inputs, exactly dequantised weights, fp32 accumulation and output; norm outputs,
q, k, v, attention output and SwiGLU product are rounded to bf16; everything else is fp32.
"""
import json, math, os
import torch, torch.nn.functional as F
from safetensors import safe_open
from quantize import fp8_unpack, mx_unpack

b16 = lambda x: x.to(torch.bfloat16).float()


def rms(x, w, eps): return b16(rms_f(x, w, eps))
def rms_f(x, w, eps): return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


def rope(x, pos, theta, rot):         # x [B,T,H,dim] fp32, pos [T] or [B,T]
    a = pos.double()[..., None] * theta ** (-torch.arange(0, rot, 2, dtype=torch.float64, device=x.device) / rot)
    c, s = a.cos().float()[..., None, :], a.sin().float()[..., None, :]; h = rot // 2
    p, q = x[..., :h], x[..., h:rot]
    return torch.cat([p * c - q * s, q * c + p * s, x[..., rot:]], -1)


def attention(q, k, v, visible, sink):   # q [B,T,HQ,d], k [B,S,HK,d], v [B,S,HK,dv], visible [T,S] or [B,1,1,T,S] bool
    B, T, H, d = q.shape; S, KH = k.shape[1:3]; G = H // KH
    s = torch.einsum("bthgd,bshd->bhgts", q.view(B, T, KH, G, d), k) / math.sqrt(d)
    s = s.masked_fill(~visible, float("-inf"))
    if sink is not None:
        z = sink.view(1, KH, G, 1, 1); m = torch.maximum(s.amax(-1, keepdim=True), z); e = (s - m).exp()
        p = e / (e.sum(-1, keepdim=True) + (z - m).exp())
    else: p = s.softmax(-1)
    return b16(torch.einsum("bhgts,bshd->bthgd", p, v).reshape(B, T, -1))


class StaticCache:
    """Preallocated head-major KV for one-token decoding: no copies, sliding layers read only their window."""
    def __init__(s, cache, total):
        s.n = cache[0][0].shape[1]; s.kv = []
        for k, v in cache:
            kb, vb = (torch.zeros(t.shape[0], t.shape[2], total, t.shape[3], device=t.device) for t in (k, v))
            kb[:, :, :s.n], vb[:, :, :s.n] = k.transpose(1, 2), v.transpose(1, 2); s.kv.append((kb, vb))

    def attend(s, i, q, k, v, window, sink):       # q [B,1,HQ,d], k/v [B,1,KH,*]
        kb, vb = s.kv[i]; kb[:, :, s.n], vb[:, :, s.n] = k[:, 0], v[:, 0]
        lo = max(0, s.n + 1 - window) if window else 0; B, KH, _, d = kb.shape
        sc = torch.matmul(q.view(B, KH, -1, d), kb[:, :, lo:s.n + 1].transpose(-1, -2)) / math.sqrt(d)
        if sink is not None: p = torch.cat([sc, sink.view(1, KH, -1, 1).expand(B, -1, -1, 1)], -1).softmax(-1)[..., :-1]
        else: p = sc.softmax(-1)
        return b16(torch.matmul(p, vb[:, :, lo:s.n + 1]).reshape(B, 1, -1))


def load_dir(path):
    idx = json.load(open(path + "/model.safetensors.index.json"))["weight_map"]; t = {}
    for f in sorted(set(idx.values())):
        with safe_open(f"{path}/{f}", "pt") as h:
            for n in h.keys(): t[n] = h.get_tensor(n)
    return t


class Model:
    def __init__(s, path, dev="cpu"):
        c = s.c = json.load(open(path + "/config.json")); t = load_dir(path)
        s.dev, s.eps = dev, c["layernorm_epsilon"]; s.rot = int(c["head_dim"] * c["partial_rotary_factor"])
        f = lambda n: t[n].float().to(dev)
        fp8 = lambda n: fp8_unpack(t[n], t[n + "_scale_inv"]).to(dev)
        mx = lambda n: mx_unpack(t[n], t[n + "_scale"])
        s.embed, s.head, s.norm = f("model.embed_tokens.weight"), f("lm_head.weight"), f("model.norm.weight"); s.ls = []
        n_q, n_kv, dq, dv = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["v_head_dim"]
        rows, per = n_q // n_kv * dq + dq + dv, -(-(n_q // n_kv * dq + dq + dv) // 128)
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."; w, sc = t[p + "self_attn.qkv_proj.weight"], t[p + "self_attn.qkv_proj.weight_scale_inv"]
            sh = [fp8_unpack(w[r * rows:(r + 1) * rows], sc[r * per:(r + 1) * per]).to(dev) for r in range(n_kv)]
            l = dict(swa=c["hybrid_layer_pattern"][i] == 1, n1=f(p + "input_layernorm.weight"), n2=f(p + "post_attention_layernorm.weight"),
                     q=torch.cat([x[:-dq - dv] for x in sh]), k=torch.cat([x[-dq - dv:-dv] for x in sh]), v=torch.cat([x[-dv:] for x in sh]),
                     o=f(p + "self_attn.o_proj.weight"))
            l["sink"] = f(p + "self_attn.attention_sink_bias") if l["swa"] else None
            if c["moe_layer_freq"][i]:
                l["router"], l["bias"] = f(p + "mlp.gate.weight"), f(p + "mlp.gate.e_score_correction_bias")
                l["ex"] = [[mx(f"{p}mlp.experts.{e}.{n}_proj.weight").to(dev) for n in ("gate", "up", "down")] for e in range(c["n_routed_experts"])]
            else: l["mlp"] = [fp8(f"{p}mlp.{n}_proj.weight") for n in ("gate", "up", "down")]
            s.ls.append(l)

    def new_cache(s): return [None] * len(s.ls)

    @staticmethod
    def truncate(cache, n): return [(k[:, :n], v[:, :n]) for k, v in cache]

    def hidden(s, ids, cache=None, taps=None):
        """ids [B,T] appended after the cache; returns (bf16-rounded final norm, list of taps, cache)."""
        c = s.c; B, T = ids.shape; cache = cache or s.new_cache(); st = isinstance(cache, StaticCache); p0 = cache.n if st else 0 if cache[0] is None else cache[0][0].shape[1]
        pos = torch.arange(p0, p0 + T, device=s.dev); x = s.embed[ids]; out, nc = [], []
        j = torch.arange(p0 + T, device=s.dev); causal = j[None] <= pos[:, None]; band = causal & (j[None] > pos[:, None] - c["sliding_window"])
        KH, dq, dv, H = c["num_key_value_heads"], c["head_dim"], c["v_head_dim"], c["num_attention_heads"]
        for i, l in enumerate(s.ls):
            h = rms(x, l["n1"], s.eps); th = c["swa_rope_theta"] if l["swa"] else c["rope_theta"]
            q = b16(rope((h @ l["q"].T).view(B, T, H, dq), pos, th, s.rot))
            k = b16(rope((h @ l["k"].T).view(B, T, KH, dq), pos, th, s.rot))
            v = b16((h @ l["v"].T).view(B, T, KH, dv) * c["attention_value_scale"])
            if st: x = x + cache.attend(i, q, k, v, c["sliding_window"] if l["swa"] else 0, l["sink"]) @ l["o"].T
            elif cache[i] is not None: k, v = torch.cat([cache[i][0], k], 1), torch.cat([cache[i][1], v], 1)
            if not st: nc.append((k, v)); x = x + attention(q, k, v, band if l["swa"] else causal, l["sink"]) @ l["o"].T
            h = rms(x, l["n2"], s.eps)
            if "mlp" in l: g, u, d = l["mlp"]; x = x + b16(F.silu(h @ g.T) * (h @ u.T)) @ d.T
            else: x = x + s.moe(l, h.view(B * T, -1)).view_as(x)
            if taps is not None and i in taps: out.append(x)
        if st: cache.n += 1
        return rms(x, s.norm, s.eps), out, cache if st else nc

    def moe(s, l, h):
        sc = torch.sigmoid(h @ l["router"].T); idx = (sc + l["bias"]).topk(s.c["num_experts_per_tok"], -1).indices
        w = sc.gather(1, idx); w = w / (w.sum(-1, keepdim=True) + 1e-20); y = torch.zeros_like(h)
        for e, (g, u, d) in enumerate(l["ex"]):
            tok, slot = (idx == e).nonzero(as_tuple=True)
            if len(tok): xe = h[tok]; y[tok] += w[tok, slot][:, None] * (b16(F.silu(xe @ g.T) * (xe @ u.T)) @ d.T)
        return y

    def logits(s, h): return h @ s.head.T


class Draft:
    def __init__(s, path, target):
        c = s.c = json.load(open(path + "/config.json")); d = c["dflash_config"]; s.t = target; dev = target.dev
        w = {k: v.float().to(dev) for k, v in load_dir(path).items()}; s.w = w
        m = torch.load(path + "/mask_embedding.pt"); s.mask = m["embedding"].float().to(dev); assert m["mask_token_id"] == d["mask_token_id"]
        s.taps, s.win, s.eps, s.vs, s.block = d["target_layer_ids"], d["swa_window_size"], c["rms_norm_eps"], d["attention_value_scale"], d["block_size"]
        s.rot = int(c["head_dim"] * c["partial_rotary_factor"]); s.H, s.KH, s.hd, s.th = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["rope_theta"]

    def kv(s, l, f, pos):
        p = f"layers.{l}.self_attn."; B, T = f.shape[:2]
        k = rms_f((f @ s.w[p + "k_proj.weight"].T).view(B, T, s.KH, s.hd), s.w[p + "k_norm.weight"], s.eps)
        return b16(rope(k, pos, s.th, s.rot)), b16((f @ s.w[p + "v_proj.weight"].T).view(B, T, s.KH, s.hd) * s.vs)

    def context(s, taps, start=0, cache=None):
        """taps: list of [B,T,D] residuals of consecutive positions from `start`; returns the extended cache."""
        f = rms(torch.cat([b16(t) for t in taps], -1) @ s.w["fc.weight"].T, s.w["hidden_norm.weight"], s.eps)
        pos = torch.arange(start, start + f.shape[1], device=f.device); out = []
        for l in range(s.c["num_hidden_layers"]):
            k, v = s.kv(l, f, pos)
            if cache: k, v = torch.cat([cache[l][0], k], 1), torch.cat([cache[l][1], v], 1)
            out.append((k, v))
        return out

    def draft(s, cache, anchor, at):
        """Blocks of one sequence: tokens `anchor` [A] at positions `at` [A] <= len(cache), each reading the cached context before it;
        returns logits [A,7,V] for the 7 positions behind each, without the Markov head's bias, and the hidden rows [A,7,D] that it is made of."""
        B, n = len(anchor), s.block; dev = s.t.dev; cache = [(k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)) for k, v in cache]
        x = torch.cat([s.t.embed[anchor][:, None], s.mask.expand(B, n - 1, -1)], 1)
        pos = at[:, None] + torch.arange(n, device=dev); j = torch.arange(cache[0][0].shape[1], device=dev)
        vis = torch.cat([(j < at[:, None, None]) & (j > pos[..., None] - s.win), torch.ones(B, n, n, dtype=torch.bool, device=dev)], 2)[:, None, None]
        for l in range(s.c["num_hidden_layers"]):
            w = lambda q: s.w[f"layers.{l}.{q}"]
            h = rms(x, w("input_layernorm.weight"), s.eps)
            q = b16(rope(rms_f((h @ w("self_attn.q_proj.weight").T).view(B, n, s.H, s.hd), w("self_attn.q_norm.weight"), s.eps), pos, s.th, s.rot))
            k, v = s.kv(l, h, pos)
            o = attention(q, torch.cat([cache[l][0], k], 1), torch.cat([cache[l][1], v], 1), vis, w("self_attn.attention_sink_bias"))
            x = x + o @ w("self_attn.o_proj.weight").T
            h = rms(x, w("post_attention_layernorm.weight"), s.eps)
            x = x + b16(F.silu(h @ w("mlp.gate_proj.weight").T) * (h @ w("mlp.up_proj.weight").T)) @ w("mlp.down_proj.weight").T
        h = rms(x, s.w["norm.weight"], s.eps)[:, 1:]
        return s.t.logits(h), h

    def markov(s, h, previous):
        """Bias [...,V] of the logits of hidden rows h [...,D] behind the tokens `previous` [...]."""
        w = lambda n: s.w["markov_head." + n]; e = w("markov_w1.weight")[previous]
        return (torch.sigmoid(torch.cat([h, e], -1) @ w("gate_proj.weight").T + w("gate_proj.bias")) * e) @ w("markov_w2.weight").T
