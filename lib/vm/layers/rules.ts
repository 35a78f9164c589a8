/**
 * The layer of the firewall's rules: published ports, masquerading, policies, limits, and what passes
 * other firewalls.
 *
 * @module
 */

import type { Firewall } from "../../firewall/firewall.ts";
import type { GuestRules } from "../../firewall/model.ts";
import { LimitsError } from "../../errors.ts";
import { isSamePort, subtractPorts } from "../../inet/ports.ts";
import { isSame } from "../../same.ts";
import { type Served, shownRules } from "../record/served.ts";
import type { Difference } from "../types.ts";
import type { Context, Layer } from "./layer.ts";

/** What the layer has to know of a kind of attachment. */
export interface RulesOf<B> {
  readonly served: (at: B) => Served;
  /** Whether what the rules lead to goes with them. */
  readonly leaves?: boolean;
  /** Refuses what rules that are made cannot enforce. */
  readonly require?: (context: Context<B>, to: B) => void | Promise<void>;
  /** The attachment without the limits of one of its interfaces; undefined where they were asked for. */
  readonly withoutLimits?: (at: B, index: number) => B | undefined;
}

/** The rules of all interfaces. */
export function rulesLayer<B>(
  { served, leaves = false, require, withoutLimits }: RulesOf<B>,
): Layer<B> {
  /** Brings one interface's rules in; where the kernel cannot limit it, without its limits. */
  function apply(context: Context<B>, to: B, index: number, act: (rules: GuestRules) => void): B {
    const wanted = served(to).guests[index]!;
    try {
      act(wanted);
      return to;
    } catch (error) {
      const without = error instanceof LimitsError ? withoutLimits?.(to, index) : undefined;
      if (!(error instanceof LimitsError) || without === undefined) throw error;
      const why = `${error.message}: one guest may take the network from all: ${error.mend}`;
      context.host.note(`warning: ${why}`);
      act(served(without).guests[index]!);
      return without;
    }
  }

  return {
    name: "rules",
    also: ["policy", "passes"],
    on: "network",

    // Of ports that a plugin publishes, the connections are ended here.
    want: (at) => [served(at).guests, served(at).shown],

    describe: (at) => `the rules of ${served(at).owners.join(", ")}`,

    async observe({ host }, at) {
      const { firewall: kind, guests } = served(at);
      const firewall = await host.session.firewall(kind);
      return guests.flatMap((rules) => firewall.differences(rules))
        .map((finding): Difference => ({ ...finding, repair: "live" }));
    },

    async make(context, to) {
      await require?.(context, to);
      const { host, undo } = context;
      const firewall = await host.session.firewall(served(to).firewall);
      await firewall.flows.searched();
      let at = to;
      for (const [index, { owner }] of served(to).guests.entries()) {
        at = apply(context, at, index, (rules) => {
          undo.push(`the rules of ${owner}`, () => void firewall.change(owner, rules, undefined));
          firewall.change(owner, undefined, rules);
        });
      }
      noteClosed(context, firewall, served(at));
      return at;
    },

    async change(context, from, to) {
      const { undo, cutOff } = context;
      const firewall = await context.host.session.firewall(served(to).firewall);
      await firewall.flows.searched();
      const before = served(from);
      // Of a change that was cut off nobody knows what is there, nor where somebody flushed all.
      const known = cutOff === undefined && context.found.length === 0 && firewall.exists();
      let at = to;
      for (const [index, had] of before.guests.entries()) {
        at = apply(context, at, index, (wanted) => {
          const [old, rules] = known ? withoutCommon(had, wanted) : [had, wanted];
          undo.push(`the rules of ${had.owner}`, () => void firewall.change(had.owner, rules, old));
          firewall.change(had.owner, cutOff === undefined ? old : "any", rules);
        });
      }
      const after = served(at);
      noteClosed(context, firewall, after);
      if (cutOff !== undefined) { for (const rules of after.guests) firewall.endStaleFlows(rules); }
      endPluginsFlows(firewall, before, after);
      return at;
    },

    async take(context, from) {
      const { session } = context.host;
      const { firewall: kind, owners, guests } = served(from);
      const failures: unknown[] = [];
      for (const firewall of await session.firewalls(kind)) {
        for (const owner of owners) {
          const rules = guests.find((guest) => guest.owner === owner);
          try {
            firewall.change(owner, context.cutOff === undefined && rules || "any", undefined, {
              leaves: leaves && !context.remaking,
            });
          } catch (error) {
            failures.push(error);
          }
        }
      }
      return failures;
    },
  };
}

/** Two versions of rules without the ports that they have in common: they may be ten thousand. */
function withoutCommon(a: GuestRules, b: GuestRules): [GuestRules, GuestRules] {
  if (a.ports.length + b.ports.length < MANY) return [a, b];
  // Where one was added, all before it are the same.
  let same = 0;
  const shorter = Math.min(a.ports.length, b.ports.length);
  while (same < shorter && isSamePort(a.ports[same]!, b.ports[same]!)) same++;
  const [rest, others] = [a.ports.slice(same), b.ports.slice(same)];
  return [
    { ...a, ports: subtractPorts(rest, others) },
    { ...b, ports: subtractPorts(others, rest) },
  ];
}

const MANY = 16;

/** A plugin that publishes ports ends no connections. */
function endPluginsFlows(firewall: Firewall, before: Served, after: Served): void {
  const [rules] = after.guests;
  if (rules === undefined || after.shown === undefined) return;
  const ports = after.shown;
  if (isSame(before.shown, ports)) return;
  firewall.endStaleFlows({ ...rules, ports }, before.shown);
}

/** Says which firewall keeps published ports closed to other machines. */
function noteClosed<B>({ host }: Context<B>, firewall: Firewall, served: Served): void {
  const closedBy = shownRules(served).map((rules) => firewall.closedBy(rules)).find(Boolean);
  if (closedBy === undefined) return;
  host.note(
    `${closedBy} keeps the published ports closed to other machines: ` +
      `open them with ${served.command} --open-firewall`,
  );
}
