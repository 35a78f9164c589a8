/**
 * A kernel without a kernel, for tests of the verbs: each layer's things are entries of a map, made,
 * compared and taken away under the real layers' names and in the real layers' dependencies. It refuses
 * what the kernel would refuse, as a link in a namespace that is not there, and keeps a log of effects.
 *
 * At any effect it can fail, as the kernel does, or be killed, as a process is: then nothing that follows
 * has an effect, and the records on disk stay as they were at that moment.
 *
 * @module
 */

import { TapkitError } from "../../lib/errors.ts";
import { isThere } from "../../lib/files.ts";
import type { Firewall } from "../../lib/firewall/firewall.ts";
import { PortConflictError, type PortMapping, portsOverlap } from "../../lib/inet/ports.ts";
import type { Context, Layer } from "../../lib/vm/layers/layer.ts";
import {
  type AddressAttachment,
  type BridgeAttachment,
  servedAddress,
  servedBridge,
} from "../../lib/vm/record/address.ts";
import type { Both, NetworkFact } from "../../lib/vm/record/attachment.ts";
import { linkNames } from "../../lib/vm/record/identity.ts";
import { bindClaims, type Served, servedVm, shownRules } from "../../lib/vm/record/served.ts";
import type { Layers } from "../../lib/vm/layers/kinds.ts";
import type { Difference, HostSession, LayerName } from "../../lib/vm/types.ts";

/** What happens at an effect instead of it. */
export interface Accident {
  /** At which effect, counted from 1. */
  readonly at: number;
  /** An error, which is undone; or an end, after which nothing has any effect. */
  readonly is: "failure" | "kill";
}

/** The process is gone: nobody catches this. */
export class Killed extends Error {}

const NETWORK = "net";
const DNS = { nameservers: ["192.0.2.53"], search: [] };
const RESULT = { cniVersion: "1.0.0", interfaces: [], ips: [], routes: [] };
const POOL = Array.from({ length: 250 }, (_, index) => `10.0.0.${index + 2}`);

/** The kernel of one host, and the state directory beside it. */
export class FakeKernel {
  /** What is there, by name. */
  readonly things = new Map<string, string>();
  /** Every effect, in order: `"+ netns tapkit-web"`. */
  readonly log: string[] = [];
  readonly stateDir: string;
  #effects = 0;
  #accident: Accident | undefined;
  #killed: Map<string, string> | undefined;

  constructor() {
    this.stateDir = Deno.makeTempDirSync({ prefix: "tapkit-fake-" });
  }

  /** How many effects there were. */
  get effects(): number {
    return this.#effects;
  }

  /** What calls of the library take to work on this. */
  get options() {
    return { stateDir: this.stateDir, session: this.#session() };
  }

  /** Runs a verb with an accident; returns whether that happened. A killed one's records stay as they were. */
  async with(accident: Accident | undefined, verb: () => Promise<unknown>): Promise<boolean> {
    this.#effects = 0;
    this.#accident = accident;
    try {
      await verb();
    } catch (error) {
      if (accident === undefined) throw error;
    }
    const happened = accident !== undefined && this.#effects >= accident.at;
    if (this.#killed !== undefined) this.#putFilesBack(this.#killed);
    this.#killed = undefined;
    this.#accident = undefined;
    return happened;
  }

  /** Everything that is there, the state directory's files included. */
  snapshot(): string[] {
    return [
      ...[...this.things].map(([name, value]) => `${name} ${value}`),
      ...[...this.#files().keys()].filter((path) => !path.endsWith("/lock")),
    ].sort();
  }

  /** Takes away all that a reboot takes. */
  reboot(): void {
    for (const name of this.things.keys()) {
      if (!name.startsWith("address ")) this.things.delete(name);
    }
  }

  [Symbol.dispose](): void {
    for (const path of [this.stateDir, `${this.stateDir}-common`]) {
      if (isThere(path)) Deno.removeSync(path, { recursive: true });
    }
  }

  /** Puts a thing there. */
  add(name: string, value = ""): void {
    this.#effect(`+ ${name}`, () => this.things.set(name, value));
  }

  /** Takes a thing away, and what stands in it; none is no error. */
  remove(name: string): void {
    if (!this.things.has(name)) return;
    this.#effect(`- ${name}`, () => {
      for (const other of [...this.things.keys()]) {
        if (other === name || other.startsWith(`${name}/`)) this.things.delete(other);
      }
    });
  }

  #effect(what: string, act: () => void): void {
    if (this.#killed !== undefined) throw new Killed();
    this.#effects++;
    if (this.#accident?.at === this.#effects) {
      if (this.#accident.is === "failure") throw new TapkitError(`${what}: refused`);
      this.#killed = this.#files();
      throw new Killed();
    }
    this.log.push(what);
    act();
  }

  #files(): Map<string, string> {
    const files = new Map<string, string>();
    const walk = (directory: string) => {
      for (const { name, isDirectory, isSymlink } of Deno.readDirSync(directory)) {
        const path = `${directory}/${name}`;
        if (isDirectory) walk(path);
        else {files.set(
            path,
            isSymlink ? `-> ${Deno.readLinkSync(path)}` : Deno.readTextFileSync(path),
          );}
      }
    };
    // It goes with the last VM.
    if (isThere(this.stateDir)) walk(this.stateDir);
    return files;
  }

  #putFilesBack(files: ReadonlyMap<string, string>): void {
    if (isThere(this.stateDir)) Deno.removeSync(this.stateDir, { recursive: true });
    for (const [path, text] of files) {
      Deno.mkdirSync(path.slice(0, path.lastIndexOf("/")), { recursive: true });
      if (text.startsWith("-> ")) Deno.symlinkSync(text.slice(3), path);
      else Deno.writeTextFileSync(path, text);
    }
  }

  #session(): HostSession {
    const firewall = {
      kind: "nftables",
      mappedPorts: () => Promise.resolve({ unread: [], of: () => [] }),
      flows: { searchAhead: () => {} },
    } as unknown as Firewall;
    const kept = {
      layers: this.#layers(),
      registry: { path: `${this.stateDir}-common/elsewhere` },
      "gone links": { active: false, end: () => Promise.resolve() },
    };
    const keep = <T extends Disposable>(key: string, make: () => T) =>
      (kept as Record<string, unknown>)[key] as T ?? make();
    return {
      // The verbs have no business with it.
      nl: undefined as never,
      firewall: () => Promise.resolve(firewall),
      firewalls: () => Promise.resolve([firewall]),
      keep,
      share: keep,
      [Symbol.dispose]: () => {},
    };
  }

  #layers(): Omit<Layers, typeof Symbol.dispose> {
    const serving = <B>(served: (at: B) => Served) => [
      this.#rules(served),
      this.#settings(served),
    ];
    return {
      vm: [this.#netns(), this.#network(), this.#wire(), this.#guard(), ...serving(servedVm)],
      address: serving<AddressAttachment>(servedAddress),
      bridge: serving<BridgeAttachment>(servedBridge),
    };
  }

  #missing(layer: LayerName, names: readonly string[], repair: Difference["repair"]): Difference[] {
    return names.filter((name) => !this.things.has(name))
      .map((object) => ({ layer, object, problem: "is missing", repair }));
  }

  /** Things of a layer that all are made anew where one is missing. */
  #plain(
    layer: Pick<Layer<Both>, "name" | "on">,
    namesOf: (at: Both) => string[],
    repair: Difference["repair"] = "recreate",
  ): Layer<Both> {
    const make = ({ undo }: Context<Both>, to: Both) => {
      for (const name of namesOf(to)) {
        undo.push(name, () => this.remove(name));
        this.#require(name);
        this.add(name);
      }
      return to;
    };
    return {
      ...layer,
      want: namesOf,
      describe: (at) => namesOf(at).join(", "),
      observe: (_context, at) => this.#missing(layer.name, namesOf(at), repair),
      make,
      change: (context, _from, to) => make(context, to),
      take: (_context, from) => (namesOf(from).forEach((name) => this.remove(name)), []),
    };
  }

  /** A thing in another one needs that, and no thing is made twice. */
  #require(name: string): void {
    const place = name.slice(0, name.lastIndexOf("/"));
    if (name.startsWith("netns ") && name.includes("/") && !this.things.has(place)) {
      throw new TapkitError(`${name}: there is no ${place}`);
    }
  }

  #netns(): Layer<Both> {
    const name = ({ spec }: Both) => [`netns ${spec.id.name}`];
    return this.#plain({ name: "netns" }, name);
  }

  #network(): Layer<Both> {
    const plain = this.#plain(
      { name: "network", on: "netns" },
      (at) =>
        at.facts.networks.map(({ attachment }) => `netns ${at.spec.id.name}/${attachment.ifName}`),
    );
    return {
      ...plain,
      plan: (_context, to) => ({
        spec: { ...to.spec, networks: [NETWORK] },
        facts: { ...to.facts, networks: [this.#plan(to)] },
      }),
      make: async (context, to, before) => {
        const { name } = to.spec.id;
        const had = before?.facts.networks[0]?.reach?.addresses[0];
        const address = had ?? POOL.find((one) => !this.things.has(`address ${one}`))!;
        context.undo.push(`address ${address}`, () => this.remove(`address ${address}`));
        this.add(`address ${address}`, name);
        const made = await plain.make(context, to, before);
        const [fact] = made.facts.networks;
        const network: NetworkFact = {
          attachment: { ...fact!.attachment, result: { ...RESULT, dns: DNS } },
          link: {
            mac: "02:00:00:00:00:01",
            mtu: 1500,
            addresses: [{ address: `${address}/24`, gateway: "10.0.0.1" }],
            routes: [],
          },
          reach: { link: "br0", addresses: [address], masquerade: true, forward: true },
        };
        const claims = bindClaims(made.spec.claims, network);
        return {
          spec: { ...made.spec, claims },
          facts: { ...made.facts, networks: [network], dns: DNS },
        };
      },
      take: async (context, from) => {
        for (const [name, holder] of this.things) {
          if (name.startsWith("address ") && holder === from.spec.id.name) this.remove(name);
        }
        return await plain.take!(context, from);
      },
    };
  }

  #plan({ spec: { id } }: Both): NetworkFact {
    const { containerId } = id;
    const attachment = { network: NETWORK, containerId, ifName: "eth0", cniArgs: {}, plugins: [] };
    return { attachment };
  }

  #wire(): Layer<Both> {
    const layer = this.#plain(
      { name: "wire", on: "network" },
      (at) =>
        at.facts.networks.map(({ attachment: { ifName } }) =>
          `netns ${at.spec.id.name}/${linkNames(ifName).tap}`
        ),
    );
    return {
      ...layer,
      make: async (context, to, before) => {
        const made = await layer.make(context, to, before);
        const networks = made.facts.networks.map((fact) => ({
          ...fact,
          wire: { mode: "tc-redirect", guarded: true } as const,
        }));
        return { ...made, facts: { ...made.facts, networks } };
      },
    };
  }

  #guard(): Layer<Both> {
    const names = (at: Both) => [
      `netns ${at.spec.id.name}/vm_eth0/guard ${at.spec.antispoof ? "strict" : "open"}`,
    ];
    const layer = this.#plain({ name: "guard", on: "wire" }, names, "live");
    return {
      ...layer,
      change: (context, from, to) => {
        for (const name of names(from)) {
          context.undo.push(name, () => this.add(name));
          this.remove(name);
        }
        return layer.make(context, to, from);
      },
    };
  }

  /** Rules by owner and port: one port leads to one owner. */
  #rules<B>(served: (at: B) => Served): Layer<B> {
    const names = (at: B) =>
      served(at).guests.flatMap(({ owner, ports }) => [
        `rules ${owner}`,
        ...ports.map((port) => `port ${owner} ${JSON.stringify(port)}`),
      ]);
    const bring = (undo: Context<B>["undo"], have: readonly string[], want: readonly string[]) => {
      for (const name of have.filter((one) => !want.includes(one) && this.things.has(one))) {
        undo.push(name, () => this.add(name));
        this.remove(name);
      }
      for (const name of want.filter((one) => !this.things.has(one))) {
        this.#refuseTaken(name);
        undo.push(name, () => this.remove(name));
        this.add(name);
      }
    };
    const tagged = (at: B) =>
      [...this.things.keys()].filter((name) =>
        served(at).owners.some((owner) =>
          name === `rules ${owner}` || name.startsWith(`port ${owner} `)
        )
      );
    return {
      name: "rules",
      on: "network",
      want: names,
      describe: (at) => `rules of ${served(at).owners.join()}`,
      observe: (_context, at) => this.#missing("rules", names(at), "live"),
      make: ({ undo }, to) => (bring(undo, [], names(to)), to),
      change: ({ undo, cutOff }, from, to) => {
        bring(undo, cutOff === undefined ? names(from) : tagged(from), names(to));
        return to;
      },
      take: (_context, from) => (tagged(from).forEach((name) => this.remove(name)), []),
    };
  }

  #refuseTaken(name: string): void {
    const [, owner, port] = /^port (\S+) (.*)$/.exec(name) ?? [];
    if (port === undefined) return;
    const wanted: PortMapping = JSON.parse(port);
    for (const other of this.things.keys()) {
      const [, holder = "", text] = /^port (\S+) (.*)$/.exec(other) ?? [];
      if (text === undefined || holder === owner || !portsOverlap(wanted, JSON.parse(text))) {
        continue;
      }
      throw new PortConflictError({ ...wanted, owner: holder }, `already mapped to ${holder}`);
    }
  }

  /** One setting, for as long as anybody has rules. */
  #settings<B>(served: (at: B) => Served): Layer<B> {
    const name = "setting forwarding";
    const isNeeded = () => [...this.things.keys()].some((thing) => thing.startsWith("rules "));
    return {
      name: "sysctls",
      on: "rules",
      outlives: true,
      want: (at) => shownRules(served(at)).length > 0,
      describe: () => name,
      observe: () => this.#missing("sysctls", [name], "live"),
      make: ({ undo }, to) => {
        undo.push(name, () => isNeeded() || this.remove(name));
        if (!this.things.has(name)) this.add(name);
        return to;
      },
      change: ({ undo }, _from, to) => {
        undo.push(name, () => {});
        if (!this.things.has(name)) this.add(name);
        return to;
      },
      take: () => (isNeeded() || this.remove(name), []),
    };
  }
}
