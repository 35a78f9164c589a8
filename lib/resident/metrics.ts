/**
 * Metrics in Prometheus' text format.
 *
 * @module
 */

import { describe } from "../errors.ts";
import { getLinkCounters, type LinkCounters } from "../netlink/link.ts";
import type { HostPaths } from "../vm/record/paths.ts";
import { openVm } from "../vm/netns.ts";
import { interfacesOf } from "../vm/record/derive.ts";
import { attachedSide, readVms } from "../vm/record/store.ts";

type Labels = Readonly<Record<string, string | number>>;

/** Seconds: the upper bounds of a histogram's buckets. */
const BUCKETS = [0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** What is timed. */
export type Timed = "attach" | "remove";

/** What a process counts of its requests. */
export class Metrics {
  readonly #counts = {
    requests: new Map<string, number>(),
    errors: new Map<string, number>(),
    heals: new Map<string, number>(),
  };
  readonly #timed = new Map<Timed, { counts: number[]; sum: number; count: number }>();

  constructor() {
    const none = () => ({ counts: BUCKETS.map(() => 0), sum: 0, count: 0 });
    for (const what of ["attach", "remove"] as const) this.#timed.set(what, none());
  }

  /** Adds one to a counter. */
  count(name: "requests" | "errors" | "heals", labels: Labels): void {
    const counts = this.#counts[name];
    const key = labelled("", labels);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }

  /** Does something, and adds the time that it took if it succeeded. */
  async time<T>(what: Timed, act: () => Promise<T>): Promise<T> {
    const begun = performance.now();
    const result = await act();
    const seconds = (performance.now() - begun) / 1000;
    const histogram = this.#timed.get(what)!;
    BUCKETS.forEach((bound, index) => {
      if (seconds <= bound) histogram.counts[index]!++;
    });
    histogram.sum += seconds;
    histogram.count++;
    return result;
  }

  /** The lines of all that was counted. */
  lines(): string[] {
    const counters = (["requests", "errors", "heals"] as const).flatMap((name) => {
      const metric = `tapkit_${name}_total`;
      const counts = [...this.#counts[name]];
      return [type(metric, "counter"), ...counts.map(([key, n]) => `${metric}${key} ${n}`)];
    });
    const histograms = [...this.#timed].flatMap(([what, { counts, sum, count }]) => {
      const metric = `tapkit_${what}_seconds`;
      return [
        type(metric, "histogram"),
        ...counts.map((n, index) => `${metric}_bucket{le="${BUCKETS[index]}"} ${n}`),
        `${metric}_bucket{le="+Inf"} ${count}`,
        `${metric}_sum ${sum}`,
        `${metric}_count ${count}`,
      ];
    });
    return [...counters, ...histograms];
  }
}

/** The lines of a metric whose samples are at hand. */
export function metricLines(
  metric: string,
  kind: "counter" | "gauge",
  samples: Iterable<readonly [Labels, number]>,
): string[] {
  return [
    type(metric, kind),
    ...[...samples].map(([labels, value]) => `${labelled(metric, labels)} ${value}`),
  ];
}

function type(metric: string, kind: string): string {
  return `# TYPE ${metric} ${kind}`;
}

function labelled(metric: string, labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) =>
    `${name}="${`${value}`.replaceAll(/[\\"]/g, "\\$&").replaceAll("\n", "\\n")}"`
  );
  return pairs.length === 0 ? metric : `${metric}{${pairs.join()}}`;
}

/** The names of the counters of TAPs. What a guest sends, its TAP receives. */
const TAP_METRICS: Readonly<Record<keyof LinkCounters, string>> = {
  rxBytes: "receive_bytes",
  txBytes: "transmit_bytes",
  rxPackets: "receive_packets",
  txPackets: "transmit_packets",
  rxDropped: "receive_drop",
  txDropped: "transmit_drop",
};

/** How many namespaces to look into before others get a turn. */
const AT_ONCE = 8;

/** The counters of all TAPs, asked of the kernel now. A VM whose namespace is gone has none. */
export async function tapLines(host: HostPaths): Promise<string[]> {
  const found: (readonly [Labels, LinkCounters])[] = [];
  let looked = 0;
  for (const at of readVms(host).flatMap((stored) => attachedSide(stored) ?? [])) {
    if (++looked % AT_ONCE === 0) await new Promise((resolve) => setTimeout(resolve));
    try {
      using stack = new DisposableStack();
      const nl = openVm(stack, at.facts.netns);
      if (nl === undefined) continue;
      for (const { tap } of interfacesOf(at)) {
        const counters = getLinkCounters(nl, tap);
        if (counters !== undefined) found.push([{ vm: at.spec.id.name, tap }, counters]);
      }
    } catch (error) {
      // It may be removed at this moment.
      host.detail(`no counters of "${at.spec.id.name}": ${describe(error)}`);
    }
  }
  return Object.entries(TAP_METRICS).flatMap(([field, name]) =>
    metricLines(
      `tapkit_tap_${name}_total`,
      "counter",
      found.map(([labels, counters]) => [labels, counters[field as keyof LinkCounters]] as const),
    )
  );
}
