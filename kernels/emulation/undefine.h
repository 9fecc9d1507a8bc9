// Forgets what a kernel file defined, so that the next may define it.
#undef WIDTH
#undef STRIDE
#undef STEPS
#undef COLUMNS
#undef OWN
#undef THREADS
#undef LOG2_E
#undef LN_2
#undef MINUS_INFINITY
#undef MAX_CHANNELS
#undef PIXELS
#undef WARPS
#undef ROWS
#undef MAX_WIDTH
#undef CHUNK
#undef LANES
