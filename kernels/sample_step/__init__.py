"""sample_step(...): choose a token a row, advance its tag automaton, and say whether it is finished.

logits:         [R, V] float32
seeds, uids:    [R] int64, 64-bit words in two's complement; steps: [R] int32, 0-based index of this token
temperature:    [R] float32; 0 is argmax, ties to the lowest id
top_k:          [R] int32; 0 or -1 is off; ids that tie with the k-th are all kept
top_p:          [R] float32; 1 is off; of equal logits the lowest id is kept first
min_p:          [R] float32; 0 is off
next_state:     [S, V] int16; accept_tag: [S] int32, the tag (0 to 62) that a state accepts, or -1
states:         [R] int32 the automaton's state before this token
goal_masks:     [R] int64, bit t is set where tag t ends the row as wanted
eos_ids:        [E] int64, E may be 0; ignore_eos: [R] bool
max_tokens:     [R] int32, the row is finished when steps + 1 reaches it
returns:        (token_ids [R] int64, logprobs [R] float32, new_states [R] int32, finish [R] int8)

Filters come in Hugging Face's order: temperature, top_k, top_p, min_p; at least one id is kept. The
choice is the kept id with the largest logit / temperature - log(-log(u)), u being the Philox uniform
of (seed, step, uid, id), so it depends on the row alone. A logprob is of the untempered, unfiltered
distribution. `finish` is one of FINISH: eos beats the tags, a tag beats the length.
"""

FINISH = {0: "running", 1: "tag", 2: "eos", 3: "length", 4: "wrong_tag"}
