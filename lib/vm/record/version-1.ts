/**
 * Records of version 1, as attachments. Pure. It can go when nobody has VMs attached by a version before
 * 0.3.
 *
 * @module
 */

import type { NetworkAttachment, RecordedPlugin } from "../../cni/plan.ts";
import type { GuestRules } from "../../firewall/model.ts";
import type { FirewallKind } from "../../firewall/store.ts";
import { formatMac, parseMac } from "../../inet/mac.ts";
import { type PortMapping, subtractPorts } from "../../inet/ports.ts";
import type { NetnsIdentity } from "../../netlink/identity.ts";
import { parseRate, readPorts } from "../request.ts";
import type { AttachRequest, VmRecord } from "../types.ts";
import type { AddressAttachment } from "./address.ts";
import type { Attachment, Both, Claim, NetworkFact, Spec } from "./attachment.ts";
import { DEFAULT_LINK_LOCAL, portsOf } from "./derive.ts";

type Mapped1 = PortMapping & { readonly chosen?: boolean };

/** What version 1 kept of a VM. */
export interface Record1 extends VmRecord {
  readonly made: {
    readonly phase: "attaching" | "attached" | "removing";
    readonly firewall?: FirewallKind;
    readonly netnsGiven: boolean;
    readonly netnsIs?: NetnsIdentity;
    readonly rulesInDoubt?: true;
    readonly portOwners?: {
      readonly attach: readonly PortMapping[];
      readonly mapPort: readonly Mapped1[];
    };
    readonly run?: string;
    readonly request: AttachRequest;
    readonly networks: readonly NetworkAttachment[];
    readonly guests: readonly GuestRules[];
  };
}

/** What version 1 kept of an address. */
export interface Address1 {
  readonly to: string;
  readonly rules: GuestRules;
  readonly mapPort: readonly Mapped1[];
  readonly firewall: FirewallKind;
}

/** A VM's attachment as version 1 recorded it. */
export function fromRecord1(record: Record1): Attachment {
  const at: Both = { spec: specOf1(record), facts: factsOf1(record) };
  const { phase, rulesInDoubt, networks } = record.made;
  if (phase === "removing") return { is: "changing", from: at };
  const had = record.interfaces.length > 0;
  if (phase === "attaching") return { is: "changing", ...had ? { from: at } : {}, to: at };
  const doubted = networks.some(({ plugins }) =>
    plugins.some(({ inDoubt }: Plugin1) => inDoubt !== undefined)
  );
  if (!rulesInDoubt && !doubted) return { is: "attached", at };
  return { is: "changing", from: at, to: otherSide(record, at) };
}

type Plugin1 = RecordedPlugin & { readonly inDoubt?: RecordedPlugin["config"] };

/** What a VM may be instead, where a change was cut off: version 1 recorded the ports of both. */
function otherSide({ ports, made }: Record1, { spec, facts }: Both): Both {
  const others = subtractPorts(ports, portsOf(spec.claims))
    .map((port): Claim => ({ ...port, by: "attach", chosen: false }));
  const networks = facts.networks.map((fact, index) => ({
    ...fact,
    attachment: mapPlugins(made.networks[index]!, withOther),
  }));
  return { spec: { ...spec, claims: [...spec.claims, ...others] }, facts: { ...facts, networks } };
}

function mapPlugins(
  network: NetworkAttachment,
  change: (plugin: Plugin1) => RecordedPlugin,
): NetworkAttachment {
  return { ...network, plugins: network.plugins.map(change) };
}

function withOther({ inDoubt, ...plugin }: Plugin1): RecordedPlugin {
  return inDoubt === undefined ? plugin : { ...plugin, config: inDoubt };
}

function withoutDoubt({ inDoubt: _, ...plugin }: Plugin1): RecordedPlugin {
  return plugin;
}

function specOf1(record1: Record1): Spec {
  const { vm, id, netns, interfaces, made, ...record } = record1;
  const { request } = made;
  const { ip, mac, mtu, tapOwner, bandwidth } = request;
  const limit = (asked: VmRecord["maxConnections"]) =>
    asked === "none" ? "unlimited" as const : asked ?? "default" as const;
  return {
    id: { name: vm, containerId: id },
    networks: interfaces.length > 0
      ? interfaces.map(({ network }) => network)
      : made.networks.map(({ network }) => network),
    ...ip === undefined ? {} : { ip },
    ...mac === undefined ? {} : { mac: formatMac(parseMac(mac)) },
    ...mtu === undefined ? {} : { mtu },
    ...made.netnsGiven ? { netns } : {},
    ...tapOwner === undefined ? {} : { tapOwner },
    ...bandwidth === undefined ? {} : { bandwidth: parseRate(bandwidth) },
    plugins: request.plugins ?? "auto",
    mode: request.mode ?? "auto",
    firewall: made.firewall ?? "nftables",
    capabilities: request.capabilities ?? {},
    cniArgs: request.cniArgs ?? {},
    antispoof: request.antispoof ?? true,
    linkLocal: request.linkLocal ?? DEFAULT_LINK_LOCAL,
    policy: {
      isolated: record.isolated ?? false,
      denyEgress: record.denyEgress ?? [],
      allowEgress: record.allowEgress ?? [],
      reachableFrom: record.reachableFrom ?? [],
      maxConnections: limit(record.maxConnections),
      newConnections: limit(record.newConnections),
    },
    claims: claimsOf1(record1),
    openPorts: request.openFirewall ?? false,
    ...made.run === undefined ? {} : { run: made.run },
  };
}

function claimsOf1({ ports, interfaces, made }: Record1): Claim[] {
  const { request: { ports: asked = "none" } } = made;
  const named = asked === "none" ? [] : readPorts(asked);
  const { attach, mapPort } = made.portOwners ??
    // Those of the first interface were recorded when it was there.
    { attach: interfaces.length > 0 ? ports : named.filter(isNumbered), mapPort: [] };
  const isAsked = (one: PortMapping) => (other: PortMapping) =>
    one.protocol === other.protocol && one.vmPort === other.vmPort &&
    (other.hostPort === 0 || one.hostPort === other.hostPort);
  // What host port 0 asked for is asked for by no number.
  const wasChosen = (port: PortMapping) =>
    named.filter(isAsked(port)).some(({ hostPort }) => hostPort === 0) &&
    !named.filter(isNumbered).some(isAsked(port));
  return [
    ...attach.map((port): Claim => ({ ...port, by: "attach", chosen: wasChosen(port) })),
    ...mapPort.map(claimOfMap),
  ];
}

function isNumbered({ hostPort }: PortMapping): boolean {
  return hostPort !== 0;
}

function claimOfMap({ chosen = false, ...port }: Mapped1): Claim {
  return { ...port, by: "map", chosen };
}

function factsOf1({ netns, interfaces, dns, made }: Record1): Both["facts"] {
  return {
    netns: {
      path: netns,
      given: made.netnsGiven,
      ...made.netnsIs === undefined ? {} : { is: made.netnsIs },
    },
    networks: made.networks.map((network, index): NetworkFact => {
      const attachment = mapPlugins(network, withoutDoubt);
      const link = interfaces.find(({ name }) => name === network.ifName);
      if (link === undefined) return { attachment };
      const { mac, mtu, addresses, routes, leased } = link;
      const rules = made.guests[index];
      const hostEnd = rules?.isolatedPort ?? hostEndOf(network);
      return {
        attachment,
        link: { mac, mtu, addresses, routes, ...leased ? { leased } : {} },
        ...rules === undefined ? {} : {
          reach: {
            link: rules.link,
            addresses: rules.addresses,
            masquerade: rules.masquerade,
            forward: rules.forward,
            ...rules.relayed ? { relayed: true as const } : {},
            ...hostEnd === undefined ? {} : { hostEnd },
            ...rules.isolatedPort === undefined ? {} : { bridge: rules.link },
          },
          ...rules.limits === undefined ? {} : { limits: rules.limits },
        },
        wire: { mode: link.mode, guarded: link.dhcpGuard !== false },
      };
    }),
    dns,
  };
}

/** The host's end of an interface's veth pair, as its network said or as was seen. */
function hostEndOf({ ifName, seen, result, plugins }: NetworkAttachment): string | undefined {
  if (plugins[0]?.implementation !== "builtin") return seen?.hostEnd?.name;
  // The built-in bridge plugin names the bridge, the host's end, and the interface.
  const names = (result?.interfaces ?? []).map(({ name }) => name);
  return names[names.indexOf(ifName) - 1];
}

/** What is mapped to an address, as version 1 recorded it. */
export function fromAddress1(
  { to, rules, mapPort, firewall }: Address1,
): Attachment<AddressAttachment> {
  const claims = mapPort.map(claimOfMap);
  const at = { to, firewall, link: rules.link, claims, openPorts: rules.openPorts ?? false };
  return { is: "attached", at };
}
