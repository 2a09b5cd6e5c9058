"""Names that want to be markup stay names, wherever they come from."""

import json
import re

from limbeck.report import write

EVIL = "</script></style><script>window.broken=1</script><img src=x onerror=alert(1)>\"'&\u202e\x00"


def poisoned(result):
    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoil(inner) for inner in value]
        return value + EVIL if isinstance(value, str) else value

    clean = {key: result["task"][key] for key in ("higher_is_better",)}
    result.update({key: spoil(value) for key, value in result.items()})
    result["task"] |= clean
    for role in ("student", "teacher", "control"):
        result[role]["figures"][EVIL] = 0.5


def test_no_name_becomes_markup(make_run, tmp_path):
    labels = [EVIL + str(i) for i in range(4)]
    folder = make_run(
        EVIL, labels=labels, columns=(f"image{EVIL}", f"audio{EVIL}"), terms=(EVIL, "kl"), change=poisoned
    )
    (folder / "recipe.yaml").write_text(f"task: x # {EVIL}\n# {EVIL}\n")
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    block = {"title": EVIL, "text": EVIL, "rows": [EVIL], "columns": [EVIL], "values": [[1]], "unit": EVIL}
    blocks = [block | {"kind": kind} for kind in ("heatmap", "bars", "table", EVIL)] + [block | {"values": [[EVIL]]}]
    (folder / "findings.json").write_text(json.dumps(blocks))
    log = (folder / "log.jsonl").read_text().replace('"distil"', json.dumps(EVIL))
    (folder / "log.jsonl").write_text(log)

    for folders in ([folder], [folder, folder]):
        text = write(folders, tmp_path / "report.html").read_text(encoding="utf-8")
        assert text.count("<script") == 1
        assert text.count("</script>") == 1
        assert text.count("</style>") == 1
        assert "onerror=alert(1)&gt;" in text
        assert not re.search(r"<img src=x", text)
        assert "\u202e" not in text
        assert "\x00" not in text
        # every tag is one of ours: no quote of a name ended an attribute
        assert set(re.findall(r"<\s*([a-zA-Z][\w-]*)", text.split("</style>")[1].split("<script")[0])) <= {
            "head", "body", "main", "header", "p", "h1", "h2", "bdi", "span", "svg", "circle", "rect", "path", "strong",
            "em", "dl", "div", "dt", "dd", "br", "ul", "li", "code", "small", "nav", "ol", "a", "section", "figure",
            "figcaption", "table", "thead", "tbody", "tr", "th", "td", "button", "title", "desc", "line", "text", "g",
            "img", "b", "details", "summary", "pre", "footer",
        }  # fmt: skip
