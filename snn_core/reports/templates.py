"""The text of the pages, for jinja2, which escapes what it puts in."""

STYLE = """
:root { color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --ink: #1b1f24; --muted: #667080; --grid: #d8dde3; --paper: #ffffff; --panel: #f5f7f9; --warn: #fff3d6;
  --warn-line: #d9a21b; --series-1: #2a6fb0; --series-2: #c2601a; --series-3: #2f8552; --series-4: #7d52a8;
  --series-5: #b03a56; --series-6: #5d6670; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ed; --muted: #9aa4b1; --grid: #3a424d; --paper: #14171b; --panel: #1d2228; --warn: #3a3013;
  --warn-line: #b98d20; --series-1: #6aa9e9; --series-2: #ee9a55; --series-3: #62c48c; --series-4: #b592e2;
  --series-5: #ea7a94; --series-6: #a3adb8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.6rem 1.2rem 3rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 var(--font); }
h1 { font-size: 1.55rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--grid); padding-bottom: .25rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; }
.sub, .caption, footer { color: var(--muted); }
.caption, footer { font-size: .85rem; }
.badge { display: inline-block; border-radius: 99px; padding: .05rem .6rem; font-size: .8rem; font-weight: 600;
  border: 1px solid var(--muted); margin-right: .3rem; }
.badge.simulated, .badge.interrupted { border-color: var(--warn-line); background: var(--warn); }
.notes { border-left: 4px solid var(--warn-line); background: var(--warn); padding: .5rem .9rem; margin: 1rem 0; }
.notes ul { margin: 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; }
.tile { background: var(--panel); border-radius: 8px; padding: .6rem .9rem; flex: 1 1 150px; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; font-weight: 650; }
.tile span { color: var(--muted); font-size: .82rem; display: block; }
.scroll { overflow-x: auto; }
.scroll.tall { max-height: 34rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { text-align: right; padding: .28rem .55rem; border-bottom: 1px solid var(--grid); white-space: nowrap;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--muted); font-weight: 600; white-space: normal; position: sticky; top: 0;
  background: var(--paper); vertical-align: bottom; }
th:first-child, td:first-child, th.left, td.left { text-align: left; }
td.wrap { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
table.layers { font-size: .8rem; } table.layers th, table.layers td { padding: .25rem .4rem; }
table.facts { width: auto; } table.facts td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--muted); padding-right: 1.4rem; white-space: nowrap; }
tr.total td { font-weight: 650; border-top: 2px solid var(--grid); }
.zero { color: var(--series-3); } .bad { color: var(--series-5); font-weight: 650; }
svg { max-width: 100%; height: auto; display: block; color: var(--ink); }
svg.positions { width: 72px; height: 20px; display: inline-block; vertical-align: middle; }
.bar { display: inline-block; height: .7rem; background: var(--series-1); border-radius: 2px; min-width: 1px; }
.bar.plain { background: var(--series-6); }
pre { background: var(--panel); border-radius: 8px; padding: .8rem; overflow-x: auto; font-size: .8rem; }
details summary { cursor: pointer; color: var(--muted); }
figure { margin: .4rem 0 1rem; break-inside: avoid; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .scroll.tall { max-height: none; }
  .scroll { overflow: visible; } table { font-size: 9px; } th, td { padding: .12rem .25rem; } th { position: static; }
  tr, .tile, .notes { break-inside: avoid; } h2, h3 { break-after: avoid; } td.wrap { min-width: 0; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
{% block body %}{% endblock %}
<footer><p>Made by snn report, snn_core {{ version }}, {{ made }}. The figures of this page as JSON are in its source,
in the element with the id report-data.</p></footer>
<script type="application/json" id="report-data">{{ data }}</script>
</body>
</html>
"""

MACROS = """
{% macro facts(rows) %}<table class="facts"><tbody>
{% for name, value in rows %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</tbody></table>{% endmacro %}

{% macro notes(lines) %}{% if lines %}<div class="notes"><ul>
{% for line in lines %}<li>{{ line }}</li>
{% endfor %}</ul></div>{% endif %}{% endmacro %}

{% macro figure(image, caption) %}{% if image %}<figure>{{ image }}
<figcaption class="caption">{{ caption }}</figcaption></figure>{% endif %}{% endmacro %}

{% macro tile(value, label) %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>{% endmacro %}

{% macro positions(frequency) %}{% set width = 72 / frequency|length %}
<svg class="positions" viewBox="0 0 72 20" role="img" aria-label="{{ frequency|shares }}"><title>{{ frequency|shares }}
</title>{% for value in frequency %}{% set height = 20 * value / (frequency|max or 1) %}
<rect x="{{ '%.2f'|format(loop.index0 * width) }}" y="{{ '%.2f'|format(20 - height) }}"
width="{{ '%.2f'|format(width * 0.85) }}" height="{{ '%.2f'|format(height) }}" fill="var(--series-1)"></rect>
{% endfor %}</svg>{% endmacro %}
"""

RUN = """{% extends "page" %}{% from "macros" import facts, notes, figure, tile, positions %}
{% block body %}
<header>
<h1>{{ run.name }}</h1>
<p class="sub">{{ headline }}</p>
<p>{% if run.data.simulated is none %}<span class="badge">recordings: not recorded
whether real</span>{% elif run.data.simulated %}<span class="badge simulated">simulated recordings</span>{% else %}
<span class="badge">real recordings</span>{% endif %}{% if not run.finished %}
<span class="badge interrupted">interrupted</span>{% endif %}</p>
</header>
{{ notes(run.notes) }}
<div class="tiles">
{% for value, label in tiles %}{{ tile(value, label) }}
{% endfor %}</div>

<h2>What was run</h2>
{{ facts(run_facts) }}
<details><summary>Configuration</summary><pre>{{ config }}</pre></details>

<h2>Training</h2>
{% if figures.curves %}{{ figure(figures.curves, "A value an epoch; the point is the test set, after the last one.") }}
{% else %}<p>No epoch was recorded.</p>{% endif %}

{% if run.layers %}<h2>Layers</h2>
<div class="scroll tall"><table class="layers">
<thead><tr><th>layer</th><th>shape</th><th>pattern</th><th>kept</th><th>entropy, bits a block</th>
<th>positions kept</th><th>firing rate</th><th>SynOps dense</th><th>SynOps</th><th>bytes dense, 32 / 16 bit</th>
<th>bytes compressed, 32 / 16 bit</th><th>blocks over N:M</th></tr></thead>
<tbody>
{% for layer in run.layers %}<tr>
<td class="wrap">{{ layer.name }}{% if layer.state == "dense" and layer.reason %}<br>
<span class="caption">dense: {{ layer.reason }}</span>{% endif %}</td>
<td>{{ layer.shape|shape }}</td>
<td>{{ layer.pattern or ("unstructured" if layer.state == "pruned" else "dense") }}</td>
<td>{{ layer.kept_fraction|percent }}</td>
<td>{% if layer.mask %}{{ "%.3f"|format(layer.mask.pattern_entropy) }}<br>
<span class="caption">of {{ "%.3f"|format(layer.mask.max_entropy) }}</span>
{% else %}-{% endif %}</td>
<td>{% if layer.mask %}{{ positions(layer.mask.position_frequency) }}{% else %}-{% endif %}</td>
<td>{{ layer.firing_rate|percent }}</td>
{% if layer.binary_input is sameas false %}<td>{{ layer.macs_dense|si }} MACs</td><td>{{ layer.macs|si }} MACs</td>
{% else %}<td>{{ layer.synops_dense|si }}</td><td>{{ layer.synops|si }}</td>{% endif %}
<td>{{ layer.bytes.dense_32|count }}<br>{{ layer.bytes.dense_16|count }}</td>
<td>{% if layer.bytes.compressed_32 is none %}-{% else %}{{ layer.bytes.compressed_32|count }}<br>
{{ layer.bytes.compressed_16|count }}{% endif %}</td>
<td>{% if layer.blocks_over_pattern is none %}-{% else %}
<span class="{{ 'bad' if layer.blocks_over_pattern else 'zero' }}">{{ layer.blocks_over_pattern|count }}</span>
{% endif %}</td>
</tr>
{% endfor %}</tbody></table></div>
<p class="caption">Entropy: of the distribution of block patterns over the layer, and the most that it could be; 0 where
all blocks are alike. Positions kept: how often each of the M positions of a block is kept, from 0. Firing rate: spikes
per neuron and time step of the neuron behind the layer. SynOps: additions caused by spikes, a sample, over all time
steps; dense: by the same spikes without pruning. A layer whose input is no spikes counts multiplications (MACs).</p>
{{ figure(figures.layers, "Operations: SynOps, or MACs where the input is no spikes. Rates over the test set.") }}
{% endif %}

{% if figures.masks %}<h2>Masks</h2>
<p class="caption">A row is an output, N:M blocks lie side by side along the row{% if pictured < masked %};
{{ pictured }} of {{ masked }} pruned layers are drawn{% endif %}. Lines part the blocks.</p>
{% for name, image in figures.masks %}<h3>{{ name }}</h3>
<figure>{{ image }}</figure>
{% endfor %}{% endif %}

{% if figures.weights %}<h2>Weights</h2>
{{ figure(figures.weights, "Magnitudes of the weights that are kept; grey: dense layers. The last bar holds the "
"largest 0.5 %. " ~ histogram_note) }}{% endif %}

{% if run.energy %}<h2>Energy, estimated</h2>
<table><thead><tr><th>a sample</th><th>µJ</th><th class="left"></th></tr></thead><tbody>
{% for name, value in energies %}<tr><td class="wrap">{{ name }}</td><td>{{ "%.4g"|format(value) }}</td>
<td class="left"><span class="bar{{ ' plain' if loop.index > 1 }}"
style="width: {{ '%.1f'|format(260 * value / largest_energy) }}px"></span></td></tr>
{% endfor %}</tbody></table>
<p class="caption">An estimate, not a measurement: {{ run.energy.picojoule_ac }} pJ an addition (AC),
{{ run.energy.picojoule_mac }} pJ a multiplication with addition (MAC); {{ run.energy.estimate }}. Source:
{{ run.energy.source }}.</p>{% endif %}

{% if run.latency %}<h2>Latency, measured</h2>
<table><thead><tr><th>batch</th><th class="left">network</th><th>median ms</th><th>quartiles ms</th><th>calls</th>
<th>times as fast</th><th class="left"></th></tr></thead><tbody>
{% for batch in run.latency.batches %}{% set slowest = batch.contenders|map(attribute="median_ms")|max %}
{% for found in batch.contenders %}<tr><td>{{ batch.batch_size if loop.first }}</td>
<td class="left">{{ found.name }}</td>
<td>{{ "%.3f"|format(found.median_ms) }}</td>
<td>{{ "%.3f"|format(found.p25_ms) }} .. {{ "%.3f"|format(found.p75_ms) }}</td><td>{{ found.calls }}</td>
<td>{{ "%.2f"|format(found.times_as_fast) }}</td>
<td class="left"><span class="bar{{ ' plain' if loop.first }}"
style="width: {{ '%.1f'|format(200 * found.median_ms / slowest) }}px"></span></td></tr>
{% endfor %}{% endfor %}</tbody></table>
<p class="caption">{{ latency_note }}</p>{% endif %}

<h2>Bytes</h2>
{{ facts(byte_facts) }}
{% endblock %}
"""

COMPARISON = """{% extends "page" %}{% from "macros" import facts, notes, figure, tile %}
{% block body %}
<header><h1>{{ title }}</h1><p class="sub">{{ headline }}</p></header>
{{ notes(comparison.notes) }}
<h2>Groups</h2>
<div class="scroll"><table><thead><tr><th>method</th><th class="left">data</th><th>runs</th><th>accuracy</th>
<th>deviation</th><th>kept</th><th>SynOps</th><th>energy µJ</th><th>compressed bytes</th></tr></thead><tbody>
{% for group in comparison.groups %}<tr><td>{{ group.label }}</td>
<td class="left wrap">{{ group.data|data_name(group.simulated) }}</td><td>{{ group.runs }}</td>
<td>{{ group.accuracy|percent }}</td><td>{{ group.accuracy_std|points }}</td><td>{{ group.kept_fraction|percent }}</td>
<td>{{ group.synops|si }}</td><td>{{ group.microjoule|significant }}</td>
<td>{{ group.bytes_file_compressed|count }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="caption">Means over the runs of a group; deviation: sample standard deviation over them, in points of
accuracy. Energy: an estimate, see the page of a run.</p>
{{ figure(figure_accuracy, "Test accuracy of every run; lines join runs of one seed on the same data.") }}
{% if comparison.pairs %}<h2>Paired by seed</h2>
<div class="scroll"><table><thead><tr><th>difference of accuracy</th><th>pairs</th><th>mean, points</th>
<th>standard error</th><th>wins / ties / losses</th></tr></thead><tbody>
{% for pair in comparison.pairs %}<tr><td>{{ pair.label }} minus {{ pair.base }}</td><td>{{ pair.pairs }}</td>
<td>{{ pair.mean|points(signed=True) }}</td><td>{{ pair.standard_error|points }}</td>
<td>{{ pair.wins }} / {{ pair.ties }} / {{ pair.losses }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="caption">A pair is two runs with the same seed, training data and test data. The standard error is that of the
mean of the paired differences; with few pairs it is itself uncertain.</p>{% endif %}
<h2>Runs</h2>
<div class="scroll"><table><thead><tr><th>run</th><th class="left">method</th>
<th class="left">data</th><th>seed</th><th>accuracy</th>
<th>kept</th><th>SynOps</th><th>energy µJ</th><th>compressed bytes</th><th>training s</th>
<th>version</th></tr></thead><tbody>
{% for run in comparison.runs %}<tr><td class="wrap">{{ run.name }}</td><td class="left">{{ run.label }}</td>
<td class="left wrap">{{ run.data.name|data_name(run.data.simulated) }}</td>
<td>{{ run.seed }}</td><td>{{ run.accuracy|percent if run.finished else "interrupted" }}</td>
<td>{{ run.totals.pruned_kept_fraction|percent }}</td><td>{{ run.totals.synops|si }}</td>
<td>{{ (run.energy.microjoule if run.energy else none)|significant }}</td>
<td>{{ run.totals.bytes_file_compressed|count }}</td><td>{{ run.seconds|significant }}</td>
<td>{{ run.version or "-" }}</td></tr>
{% endfor %}</tbody></table></div>
{{ figure(figure_curves, "Loss and accuracy while training, an epoch at a time; colour: group.") }}
{% endblock %}
"""
