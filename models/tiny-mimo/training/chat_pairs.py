"""(request, answer) chat pairs from functions of the training text: the answer is the complete function."""
import ast, random, re

WITH_DOC = ["Write a Python function `{sig}` that does the following: {doc}", "Write the Python function `{sig}`. {doc}",
            "Implement `{sig}` in Python: {doc}", "Please write `{sig}`.\n{doc}", "{doc}\nSignature: `{sig}`",
            "Write a function in Python. {doc}", "Write a Python function called {name}. {doc}"]
NATURAL = ["Write a Python function that {says}", "Write a function that {says}", "Write a Python function `{name}` that {says}",
           "I need a Python function that {says}", "Can you write a function that {says}", "Python function that {says}",
           "Please write a Python function which {says}", "Give me a function `{sig}` that {says}"]
IMPERATIVE = ["Write a Python function to {does}", "How do I {does} in Python?", "Write code to {does}", "Write a Python function called {name} to {does}",
              "Show me how to {does} in Python."]
SHORT = ["Write a Python function to {w}.", "Write a Python function called {name}.", "Write a function `{sig}`.",
         "How do I {w} in Python?", "Write a short Python function `{name}`."]
MAX_CODE = 1000   # characters; keeps an answer under 300 tokens


def words(name): return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ").strip().lower()


def third_person(verb):
    if verb.endswith(("s", "x", "z", "ch", "sh")): return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else verb + "s"


def request(rng, name, sig, doc):
    """One natural request, from the first sentence of the docstring where there is one."""
    w = words(name)
    if not doc: return rng.choice(SHORT).format(sig=sig, name=name, w=w) if " " in w else None
    verb, _, rest = doc.partition(" "); sentence = re.split(r"(?<=[a-z0-9)`])\.(?:\s|$)", doc)[0].rstrip(". ")
    if rng.random() < 0.6 and rest and re.fullmatch(r"[A-Z][a-z]+", verb) and len(sentence) > 12 and ":" not in sentence \
            and not re.search(r"^(\w+ ){0,2}(function|method|class|helper|wrapper)", sentence.lower()):
        low = sentence[0].lower() + sentence[1:]
        if verb.endswith("s") and not verb.endswith("ss"): return rng.choice(NATURAL).format(says=low + ".", name=name, sig=sig)
        first, _, tail = low.partition(" ")
        if rng.random() < 0.5: return rng.choice(NATURAL).format(says=third_person(first) + " " + tail + ".", name=name, sig=sig)
        return rng.choice(IMPERATIVE).format(does=low, name=name)
    return rng.choice(WITH_DOC).format(sig=sig, doc=doc, name=name)


def chat_pairs(text, seed):
    rng = random.Random(seed)
    try: tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError): return []
    lines, out = text.split("\n"), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or node.name.startswith("__"): continue
        if node.end_lineno - node.lineno > 60: continue
        method = any(x.arg in ("self", "cls") for x in node.args.args[:1])
        if not method and node.col_offset or method and rng.random() < 0.4: continue     # no closures; free functions answer best
        doc = ast.get_docstring(node); body = node.body[1:] if doc else node.body
        if not body or len(body) == 1 and isinstance(body[0], (ast.Pass, ast.Raise)): continue
        if not doc and rng.random() > 0.6: continue
        ind = node.col_offset; cut = lambda a, b: "\n".join(l[ind:] for l in lines[a:b]).rstrip()
        head = cut(node.lineno - 1, node.body[0].lineno - 1); code = head + "\n" + cut(body[0].lineno - 1, node.end_lineno)
        if not 40 < len(code) <= MAX_CODE or not head.endswith(":"): continue
        doc = " ".join(doc.split("\n\n")[0].split()) if doc else ""
        if len(doc) > 200: doc = re.split(r"(?<=[a-z0-9)`])\.\s", doc)[0]
        if doc and not 8 <= len(doc) <= 200: continue
        asks = {request(rng, node.name, " ".join(head[4:-1].split()), doc) for _ in range(2 if doc else 1)}
        out += [(q, code) for q in sorted(asks - {None})]
    return out
