/**
 * What a comparison with the kernel finds.
 *
 * @module
 */

/** One difference between what is wanted and what is there. Together its fields are a sentence. */
export interface Finding {
  /** What differs: `the mapping of 0.0.0.0:8080/tcp`. */
  readonly object: string;
  /** How it differs: `is missing from nftables`. */
  readonly problem: string;
}

/** A finding as a sentence, without a full stop. */
export function sentence({ object, problem }: Finding): string {
  return `${object} ${problem}`;
}
