/**
 * Records of version 1, as attachments. Pure. It can go when nobody has VMs attached by a version before
 * 0.3.
 *
 * @module
 */

import type { NetworkAttachment, RecordedPlugin } from "../../cni/plan.ts";
import type { GuestRules } from "../../firewall/model.ts";
import type { FirewallKind } from "../../firewall/store.ts";
import { parsePorts, type PortMapping } from "../../inet/ports.ts";
import type { NetnsIdentity } from "../../netlink/identity.ts";
import { parseRate } from "../request.ts";
import type { AttachRequest, VmRecord } from "../types.ts";
import type { AddressAttachment } from "./address.ts";
import type { Attachment, Both, Claim, NetworkFact, Spec } from "./attachment.ts";
import { DEFAULT_LINK_LOCAL } from "./derive.ts";

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
      readonly mapPort: readonly (PortMapping & { readonly chosen?: true })[];
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
  readonly mapPort: readonly (PortMapping & { readonly chosen?: true })[];
  readonly firewall: FirewallKind;
}

/** A VM's attachment as version 1 recorded it. */
export function fromRecord1(record: Record1): Attachment {
  const at: Both = { spec: specOf1(record), facts: factsOf1(record) };
  const { phase, rulesInDoubt, networks } = record.made;
  if (phase === "removing") return { is: "changing", from: at };
  const had = record.interfaces.length > 0;
  if (phase === "attaching") return { is: "changing", ...had ? { from: at } : {}, to: at };
  // A plugin that was being run again may have either configuration.
  const doubted = networks.map((network) => mapPlugins(network, withOther));
  const other = JSON.stringify(doubted) !== JSON.stringify(at.facts.networks.map(chainOf));
  if (!rulesInDoubt && !other) return { is: "attached", at };
  const facts = at.facts.networks.map((fact, index) => ({
    ...fact,
    attachment: doubted[index] ?? fact.attachment,
  }));
  return { is: "changing", from: at, to: { ...at, facts: { ...at.facts, networks: facts } } };
}

const chainOf = ({ attachment }: NetworkFact) => attachment;

type Plugin1 = RecordedPlugin & { readonly inDoubt?: RecordedPlugin["config"] };

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

function specOf1({ vm, id, netns, interfaces, made, ...record }: Record1): Spec {
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
    ...mac === undefined ? {} : { mac },
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
    claims: claimsOf1(record.ports, made),
    openPorts: request.openFirewall ?? false,
    ...made.run === undefined ? {} : { run: made.run },
  };
}

function claimsOf1(
  ports: readonly PortMapping[],
  { portOwners, request }: Record1["made"],
): Claim[] {
  const { attach, mapPort } = portOwners ?? { attach: ports, mapPort: [] };
  const asked = request.ports === undefined || request.ports === "none" ? [] : request.ports;
  const unchosen = parsePorts(asked.filter((text) => typeof text === "string"))
    .filter(({ hostPort }) => hostPort === 0);
  const wasChosen = ({ protocol, vmPort }: PortMapping) =>
    unchosen.some((port) => port.protocol === protocol && port.vmPort === vmPort);
  return [
    ...attach.map((port): Claim => ({ ...port, by: "attach", chosen: wasChosen(port) })),
    ...mapPort.map(({ chosen = false, ...port }): Claim => ({ ...port, by: "map", chosen })),
  ];
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
            ...rules.isolatedPort === undefined
              ? {}
              : { hostEnd: rules.isolatedPort, bridge: rules.link },
          },
          ...rules.limits === undefined ? {} : { limits: rules.limits },
        },
        wire: { mode: link.mode, guarded: link.dhcpGuard !== false },
      };
    }),
    dns,
  };
}

/** What is mapped to an address, as version 1 recorded it. */
export function fromAddress1(
  { to, rules, mapPort, firewall }: Address1,
): Attachment<AddressAttachment> {
  const claims = mapPort.map(({ chosen = false, ...port }): Claim => ({
    ...port,
    by: "map",
    chosen,
  }));
  const at = { to, firewall, link: rules.link, claims, openPorts: rules.openPorts ?? false };
  return { is: "attached", at };
}
