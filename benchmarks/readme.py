"""
Writes the tables of README.md and of the pages in docs/ from the files of results, so that no number is typed by hand.

    python -m benchmarks.readme            # rewrite the pages
    python -m benchmarks.readme --check    # exit with 1 where one is not up to date
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import read_peers
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# TODO: measure these again from a clean tree, then delete the line. No other result of a changed tree is accepted.
FROM_CHANGED_TREES = {"input": "02c6eab-dirty", "streaming": "02c6eab-dirty"}
# Cases whose tests have no row in faults.json yet, or a row of another name; `make faults` writes them.
FAULTS_TO_MEASURE: set[str] = set()
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    old = {page: page.read_text(encoding="utf-8") for page in PAGES}
    new = {page: rendered(text) for page, text in old.items()}
    changed = [page for page in PAGES if new[page] != old[page]]
    if "--check" in sys.argv[1:]:
        names = ", ".join(str(page.relative_to(ROOT)) for page in changed)
        sys.exit(f"Not up to date: {names}. Run python -m benchmarks.readme" if changed else 0)
    for page in changed:
        page.write_text(new[page], encoding="utf-8")


def rendered(text: str) -> str:
    """`text` with every block between `<!-- table: NAME -->` and `<!-- end -->` written anew."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n\n{block[3]}", text)


def variants_table() -> str:
    published = results("published")
    rows = []
    for name in TINYNET_VARIANTS:
        config, figures = TinyNetConfig.from_variant(name), published[name]
        rows.append(
            (
                f"`{name}`",
                f"{config.image_size} px",
                f"{config.parameter_count:,}",
                f"{config.macs / 1e6:.1f} M",
                f"{figures['published_top_1']} %",
                f"{figures['timm_top_1']} % / {figures['timm_top_5']} %",
            )
        )
    return table(("", "image", "parameters", "MACs", "top-1, published", "top-1 / top-5, timm's weights"), rows)


def peers_table() -> str:
    rows = [
        (
            peer.title,
            f"`{peer.weights}`" if peer.weights else "PaddleClas",
            f"{peer.image_size} px",
            f"{peer.parameters / 1e6:.1f} M",
            f"{peer.macs / 1e6:.1f} M",
            f"{peer.top_1:.1f} %",
            *(f"{rate:,.0f}" if rate else "" for rate in (peer.cpu_images_per_s, peer.gpu_images_per_s)),
        )
        for peer in sorted(read_peers(), key=lambda peer: peer.macs)
    ]
    return table(("", "weights", "image", "parameters", "MACs", "top-1", "CPU, images/s", "GPU, images/s"), rows)


def latency_text() -> str:
    """Where fewer multiply-adds are not less time: pairs of similar accuracy by the speed that timm publishes."""
    peers = {peer.title: peer for peer in read_peers()}

    def on_cpu(title: str) -> str:
        return f"{peers[title].cpu_images_per_s:,.0f} images/s with {title} ({peers[title].top_1:.1f} %)"

    def on_gpu(title: str) -> str:
        return f"{peers[title].gpu_images_per_s:,.0f} images/s with {title} ({peers[title].top_1:.1f} %)"

    return (
        "In timm's own measurements, an Intel i7-12700H that classifies one image at a time manages "
        f"{on_cpu('LCNet x1.0')}, but {on_cpu('TinyNet-C')}. In batches of 1,024, an RTX 3090 manages "
        f"{on_gpu('MobileNetV4 small, 256 px')}, but {on_gpu('TinyNet-B')}."
    )


def quickstart_table() -> str:
    summary = results("quickstart")
    best = summary["best"]
    text = (
        f"After {summary['elapsed_s']:.0f} seconds ({summary['epochs']} epochs at {summary['images_per_s']:.0f} "
        f"images/s), top-1 is **{best['top_1_correct']}/{best['n']} = {100 * best['top_1']:.3f} %** on the held-out "
        "fifth."
    )
    return f"{text}\n\n{origin(summary['environment'])}"


def model_table() -> str:
    report = results("model")
    rows = [
        (
            f"`{row['variant']}`",
            row["what"],
            f"{row['timm_ms']:.1f} ms",
            f"{row['ours_ms']:.1f} ms",
            f"**{row['ratio']:.2f}**",
            f"{row['peak_memory_ratio']:.3f}" if "peak_memory_ratio" in row else "",
        )
        for row in report["results"]
    ]
    head = ("", f"batch {report['batch_size']}", "timm", "here", "timm / here", "peak memory, here / timm")
    note = f"Channels-last, medians of {report['rounds']} interleaved rounds on {report['threads']} threads."
    return f"{table(head, rows)}\n\n{note} {origin(report['environment'])}"


def optimizer_table() -> str:
    report = results("optimizer")
    rows = [
        (
            row["what"].replace("average", "EMA"),
            f"{row['timm_ms']:.1f} ms",
            f"{row['timm_foreach_ms']:.1f} ms",
            f"{row['ours_ms']:.1f} ms",
            f"**{row['ratio_to_timm']:.2f}**",
        )
        for row in report["results"]
    ]
    head = ("TinyNet-A", "timm", "timm, foreach", "here", "timm / here")
    note = f"RMSProp and EMA, medians of {report['rounds']} interleaved rounds on {report['threads']} threads."
    return f"{table(head, rows)}\n\n{note} {origin(report['environment'])}"


def train_table() -> str:
    reports = [results(f"train_{name}") for name in ("tinynet_e", "tinynet_c")]
    rows = [
        (
            f"`{report['variant']}`",
            *(f"{report['images_per_s'][name]:.0f}" for name in ("timm", "transformers", "ours")),
            *(f"**{report['ratio_to'][name]:.2f}**" for name in ("timm", "transformers")),
        )
        for report in reports
    ]
    head = ("images/s", "timm's train.py", "transformers' example", "here", "here / timm", "here / transformers")
    first = reports[0]
    note = (
        f"JPEG files to updated weights, batch {first['batch_size']}, {first['num_workers']} loader workers, "
        f"{first['threads']} threads; medians of {first['rounds']} turns each."
    )
    return f"{table(head, rows)}\n\n{note} {origin(first['environment'])}"


def input_table() -> str:
    report = results("input")
    rows = []
    for row in report["results"]:
        rates, ratios = row["images_per_s"], row["ratio_to"]
        if row["what"] == "decoding":
            share = f"**{100 * ratios['decoding']:.0f} %** of decoding alone, {rates['decoding']:.0f}"
            what, cells = "decoding, crop, resizing, flip", ("", "", f"{rates['here']:.0f}", "", "", share)
        else:
            workers = row["num_workers"]
            how = f"{workers} worker{'' if workers == 1 else 's'}" if workers else "one process"
            what = f"{row['what']}, {how}"
            cells = (
                *(f"{rates[name]:.0f}" if name in rates else "" for name in ("timm", "transformers", "here")),
                *(f"**{ratios[name]:.2f}**" if name in ratios else "" for name in ("timm", "transformers")),
                f"{rates['prepared']:.0f} (**{1 / ratios['prepared']:.2f}**)",
            )
        rows.append((f"{row['image_size']} px", what, *cells))
    head = (
        "",
        "images/s",
        "timm",
        "transformers' example",
        "here",
        "here / timm",
        "here / transformers",
        "prepared copy",
    )
    note = (
        f"JPEG files of 500 x 375 px and {report['mean_image_bytes'] / 1e3:.0f} KB to normalized batches, all with "
        "color jitter, here on the device and counted; a process has one thread; prepared copies have a shorter side "
        f"of {report['prepared_side']} px. Medians of {report['rounds']} interleaved rounds."
    )
    plot = "![Training images per second by loader, image size and number of workers](input.png)"
    return f"{plot}\n\n{table(head, rows)}\n\n{note} {origin(report['environment'])}"


def streaming_text() -> str:
    report = results("streaming")
    rates = report["images_per_s"]
    text = (
        f"With {report['num_workers']} workers at {report['image_size']} px, a shuffled stream of Parquet gives "
        f"{rates['here']:.0f} images/s. The same files, stored and shuffled by index, give {rates['stored']:.0f} "
        f"(the stream has **{report['ratio_to']['stored']:.2f}** of that); a stream that `datasets` shuffles gives "
        f"{rates['datasets']:.0f} (**{report['ratio_to']['datasets']:.2f}**)."
    )
    return f"{text}\n\n{origin(report['environment'])}"


def scale_text() -> str:
    report = results("scale")
    again = {row["kind"]: row for row in report["results"] if row["turn"] == "again"}
    kinds = {"parquet": "rows of Parquet", "tree": "files in folders"}
    starts = " and ".join(f"{again[kind]['seconds']:.0f} s as {words}" for kind, words in kinds.items())
    peaks = [
        memory["peak"] for row in report["results"] for memory in (row["memory_mb"], *row["memory_mb_of_workers"])
    ]
    text = (
        f"With {report['images']:,} tiny images in {report['classes']:,} classes, a run reaches its first batch "
        f"in {starts}; Python's imports take {again['tree']['seconds_by_part']['imports']:.0f} s of it. No process "
        f"uses more than {max(peaks) / 1000:.1f} GB."
    )
    return f"{text}\n\n{origin(report['environment'])}"


def photos_text() -> str:
    report = results("photos")
    first, seeds = report["first"], report["new"]["by_seed"]

    def counts(kind: str) -> str:
        return ", ".join(f"{seed[kind]['correct']}/{seed[kind]['n']}" for seed in seeds)

    text = (
        f"Trained from scratch on crops of {len(first['classes'])} real photographs, TinyNet-E predicts "
        f"{first['correct']}/{first['n']} = {100 * first['correct'] / first['n']:.1f} % of held-out crops correctly "
        f"after {first['seconds']:.0f} seconds. These weights, fine-tuned on {len(report['new']['classes'])} other "
        f"classes for {seeds[0]['fine_tuned']['steps']} steps, predict {counts('fine_tuned')} correctly with "
        f"{len(seeds)} seeds; a network trained from scratch for as many steps predicts {counts('from_scratch')}."
    )
    return f"{text}\n\n{origin(report['environment'])}"


def faults_table() -> str:
    report = results("faults")
    rows = [(case["case"], str(case["tried"]), str(case["passed"])) for case in report["cases"]]
    return f"{table(('case', 'tried', 'passed'), rows)}\n\n`make faults`. {origin(report['environment'])}"


def saving_text() -> str:
    report = results("saving")
    text = (
        f"A checkpoint of TinyNet-A has {report['checkpoint_mb']:.0f} MB, and training stops for "
        f"{report['median_s']:.2f} seconds to save it (median of {report['rounds']} saves). With a save every "
        f"{report['interval_s'] // 60} minutes that is {100 * report['share']:.2f} % of the time."
    )
    return f"{text}\n\n{origin(report['environment'])}"


def results(name: str) -> dict[str, Any]:
    """A file of results; exits with a sentence if nobody can tell which code was measured."""
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    if "environment" in report:
        commit = report["environment"]["commit"]
        is_changed = commit is None or commit.endswith("-dirty")
        if is_changed and (name, commit) not in FROM_CHANGED_TREES.items():
            sys.exit(f"{path}: its commit is {commit}, so its code is in no commit. Commit, then measure again.")
    return report


def origin(environment: dict[str, Any]) -> str:
    """Where a number comes from, as a line of small print."""
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "transformers"))
    extensions = " ".join(environment.get("vector_extensions", []))  # older results have none
    processor = f"{environment['processor']} ({extensions})" if extensions else environment["processor"]
    machine = environment["gpu"] or f"{processor}, {environment['cpu_cores']} cores"
    return f"<sub>{machine}; {versions}; commit {environment['commit']}, {environment['date']}</sub>"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


TABLES = {
    "variants": variants_table,
    "peers": peers_table,
    "latency": latency_text,
    "quickstart": quickstart_table,
    "model": model_table,
    "optimizer": optimizer_table,
    "train": train_table,
    "input": input_table,
    "scale": scale_text,
    "streaming": streaming_text,
    "photos": photos_text,
    "faults": faults_table,
    "saving": saving_text,
}


if __name__ == "__main__":
    main()
