/**
 * Kubernetes on this host: it has a network already, which attach-vm uses as it is.
 *
 * @module
 */

import { listConfigFiles } from "../cni/conflist.ts";
import { TapkitError } from "../errors.ts";
import { isThere, namesIn, readIfThere } from "../files.ts";

/** A distribution of Kubernetes, and where it keeps its network. */
interface Layout {
  readonly name: string;
  /** What only this one has. A directory counts when something is in it. */
  readonly signs: readonly string[];
  readonly confDir: string;
  /** Where its plugins are, the first that is there. */
  readonly binDirs: readonly string[];
}

const CONF_DIR = "/etc/cni/net.d";
const BIN_DIR = "/opt/cni/bin";

/** Those with directories of their own come first: they have a kubelet's directory too. */
const LAYOUTS: readonly Layout[] = [
  {
    name: "k3s",
    signs: ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/etc/rancher/k3s/k3s.yaml"],
    confDir: "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    // The first is that of newer versions.
    binDirs: ["/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/data/current/bin"],
  },
  {
    name: "MicroK8s",
    signs: ["/var/snap/microk8s/current/args"],
    confDir: "/var/snap/microk8s/current/args/cni-network",
    binDirs: ["/var/snap/microk8s/current/opt/cni/bin"],
  },
  {
    name: "kind",
    signs: ["/etc/systemd/system/kubelet.service.d/11-kind.conf"],
    confDir: CONF_DIR,
    binDirs: [BIN_DIR],
  },
  {
    name: "a kubelet",
    signs: ["/etc/kubernetes/kubelet.conf", "/var/lib/kubelet"],
    confDir: CONF_DIR,
    binDirs: [BIN_DIR],
  },
];

/** The programs that are a kubelet, or have one in them, and the layout of each. */
const KUBELETS: Readonly<Record<string, string>> = {
  "k3s-server": "k3s",
  "k3s-agent": "k3s",
  kubelite: "MicroK8s",
  kubelet: "a kubelet",
};

/** Words in the names and types of the networks that Kubernetes' overlays configure. */
const OVERLAY = /calico|canal|cilium|flannel|kindnet|kube-?router|kube-?ovn|ovn-k8s|antrea/i;

/** Where containerd keeps its own idea of both directories. */
const CONTAINERD_CONFIG = "/etc/containerd/config.toml";

/**
 * Refuses a host whose network is that of Kubernetes.
 *
 * @param directory the CNI configuration directory that Weave Net would write to
 * @throws {TapkitError} naming what runs there, and how attach-vm uses its network
 */
export function refuseKubernetes(directory: string): void {
  const found = findKubernetes() ?? findOverlay(directory);
  if (found === undefined) return;
  const { what, sign, confDir, binDir } = found;
  const network = configured(confDir);
  throw new TapkitError(
    `this host has the network of Kubernetes already: ${what}` +
      (network === undefined ? "" : `, and its network is "${network}"`),
    {
      mend: `attach-vm works with it as it is: run attach-vm NAME --cni-conf-dir ` +
        `${confDir} --cni-bin-dir ${binDir}` +
        (sign === undefined ? "" : `; if Kubernetes is gone from here, remove ${sign}`),
    },
  );
}

interface Found {
  /** For people: `"k3s (/var/lib/rancher/k3s/agent/etc/cni/net.d)"`. */
  readonly what: string;
  /** What there is of it on the disk. */
  readonly sign?: string;
  readonly confDir: string;
  readonly binDir: string;
}

function findKubernetes(): Found | undefined {
  for (const layout of LAYOUTS) {
    const sign = layout.signs.find(isUsed);
    if (sign !== undefined) return { what: `${layout.name} (${sign})`, sign, ...placed(layout) };
  }
  for (const pid of namesIn("/proc").filter((name) => /^\d+$/.test(name))) {
    const program = readIfThere(`/proc/${pid}/comm`)?.trim() ?? "";
    const layout = LAYOUTS.find(({ name }) => name === KUBELETS[program]);
    if (layout !== undefined) {
      return { what: `${program} runs here, process ${pid}`, ...placed(layout) };
    }
  }
  return undefined;
}

/** The configuration of an overlay, where nothing else tells of Kubernetes. */
function findOverlay(confDir: string): Found | undefined {
  const path = listConfigFiles(confDir).find((path) => {
    const { name, types } = readNetwork(path);
    return [name, ...types].some((word) => OVERLAY.test(word));
  });
  if (path === undefined) return undefined;
  const layout = LAYOUTS.find((layout) => layout.confDir === confDir);
  return {
    what: path,
    sign: path,
    confDir,
    binDir: layout === undefined ? BIN_DIR : placed(layout).binDir,
  };
}

/** With the directories that containerd was configured with, where those are a kubelet's. */
function placed({ confDir, binDirs }: Layout): Pick<Found, "confDir" | "binDir"> {
  if (confDir !== CONF_DIR) return { confDir, binDir: binDirs.find(isUsed) ?? binDirs.at(-1)! };
  const config = readIfThere(CONTAINERD_CONFIG) ?? "";
  const named = (key: string) =>
    new RegExp(`^\\s*${key}\\s*=\\s*["']([^"']+)`, "m").exec(config)?.[1];
  return { confDir: named("conf_dir") ?? CONF_DIR, binDir: named("bin_dir") ?? BIN_DIR };
}

/** The name of the first network of a directory, which attach-vm takes unless another one is named. */
function configured(confDir: string): string | undefined {
  for (const path of listConfigFiles(confDir)) {
    const { name, types } = readNetwork(path);
    if (name !== "" && types.some((type) => type !== "loopback")) return name;
  }
  return undefined;
}

/** A network's name and the types of its plugins, as far as they can be read. */
function readNetwork(path: string): { readonly name: string; readonly types: string[] } {
  try {
    const { name, type, plugins } = JSON.parse(readIfThere(path) ?? "");
    const chain: unknown[] = Array.isArray(plugins) ? plugins : [{ type }];
    const types = chain.map((plugin) => String((plugin as { type?: unknown } | null)?.type ?? ""));
    return { name: String(name ?? ""), types };
  } catch {
    return { name: "", types: [] };
  }
}

/** Whether a file is there, or a directory that has something in it. */
function isUsed(path: string): boolean {
  try {
    return isThere(path) && (!Deno.statSync(path).isDirectory || namesIn(path).length > 0);
  } catch {
    // A link that leads nowhere.
    return false;
  }
}
