/**
 * The host as checks see it. Everything is read when it is first asked for.
 *
 * @module
 */

import { listConfigFiles, readConfigFile } from "../cni/conflist.ts";
import type { NetworkConfigList } from "../cni/types.ts";
import type { Firewall } from "../firewall/firewall.ts";
import { isInstalled } from "../firewall/open.ts";
import type { FirewallKind } from "../firewall/store.ts";
import type { Both } from "../vm/record/attachment.ts";
import { elsewhere } from "../vm/record/elsewhere.ts";
import { addressNames, bridgeNames, type HostPaths, recordNames } from "../vm/record/paths.ts";
import { attachedSide, readVm, sidesOf } from "../vm/record/store.ts";
import { type Host, openHost } from "../vm/session.ts";
import type { HostOptions } from "../vm/types.ts";

/** What the resident of this host is asked by, and how it would be started. */
export interface ExamineOptions extends HostOptions {
  /** Repairs what can be repaired without harm to a guest that runs. */
  readonly fix?: boolean;
  /** The path of the resident's socket; `/run/tapkit/tapkit.sock` when absent. */
  readonly socket?: string;
  /** The program and arguments that start the resident; without them, `fix` does not start it. */
  readonly serve?: readonly string[];
}

/** A VM's record that can be read, and where it is. */
export interface Recorded {
  readonly host: HostPaths;
  readonly name: string;
  /** The attached VM; undefined while it is being changed. */
  readonly at: Both | undefined;
  /** The present and the wanted state, of which the kernel may have parts. */
  readonly sides: readonly Both[];
}

/** A record that cannot be read. */
export interface Unreadable {
  readonly host: HostPaths;
  readonly name: string;
  readonly error: unknown;
}

/** A network's configuration, or why it cannot be read. */
export type Configuration =
  | { readonly path: string; readonly list: NetworkConfigList; readonly error?: undefined }
  | { readonly path: string; readonly list?: undefined; readonly error: unknown };

/** A host that is being examined. */
export class Examined implements Disposable {
  readonly options: ExamineOptions;
  readonly host: Host;
  #records: readonly (Recorded | Unreadable)[] | undefined;

  constructor(options: ExamineOptions) {
    this.options = options;
    // Records that cannot be read have a check of their own.
    this.host = openHost({ ...options, note: () => {}, detail: () => {} });
  }

  /** This state directory, and the others of the host. */
  get everywhere(): readonly HostPaths[] {
    return [this.host, ...elsewhere(this.host)];
  }

  /** The VMs' records that can be read. */
  get records(): readonly Recorded[] {
    return this.#read().filter((each) => "sides" in each);
  }

  /** The VMs' records that cannot be read. */
  get unreadable(): readonly Unreadable[] {
    return this.#read().filter((each) => "error" in each);
  }

  /** The attached VMs of this state directory and of others. */
  get attached(): readonly Both[] {
    return this.records.flatMap(({ at }) => at ?? []);
  }

  /** How many interfaces the VMs have. */
  get interfaces(): number {
    return this.attached.flatMap(({ facts }) => facts.networks).length;
  }

  /** The names of the VMs that have a record, readable or not. */
  get names(): ReadonlySet<string> {
    return new Set(this.#read().map(({ name }) => name));
  }

  /** The addresses of map-port --to that have a record. */
  get addresses(): readonly string[] {
    return this.everywhere.flatMap((each) => addressNames(each));
  }

  /** The bridges that have a record. */
  get bridges(): readonly string[] {
    return this.everywhere.flatMap((each) => bridgeNames(each));
  }

  /** The configurations of networks, in their order. */
  get configurations(): readonly Configuration[] {
    return listConfigFiles(this.host.confDir).map((path) => {
      try {
        return { path, list: readConfigFile(path) };
      } catch (error) {
        return { path, error };
      }
    });
  }

  /** The firewall of each backend that can have rules of tapkit's here. */
  async firewalls(): Promise<readonly Firewall[]> {
    const { session } = this.host;
    const usual = await session.firewall();
    const kinds: readonly FirewallKind[] = [
      usual.kind,
      ...this.attached.map(({ spec }) => spec.firewall),
    ];
    const all = [];
    for (const kind of new Set(kinds)) {
      if (isInstalled(kind)) all.push(...await session.firewalls(kind));
    }
    return [...new Set(all)];
  }

  #read(): readonly (Recorded | Unreadable)[] {
    return this.#records ??= this.everywhere.flatMap((host) =>
      recordNames(host).flatMap((name): (Recorded | Unreadable)[] => {
        try {
          const stored = readVm(host, name);
          if (stored === undefined) return [];
          const at = stored.is === "attached" ? attachedSide(stored) : undefined;
          return [{ host, name, at, sides: sidesOf(stored) }];
        } catch (error) {
          return [{ host, name, error }];
        }
      })
    );
  }

  [Symbol.dispose](): void {
    this.host[Symbol.dispose]();
  }
}
