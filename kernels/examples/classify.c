/* Classifies float32 samples with an artifact: prints the class with the highest score of each.
 *
 *     classify ARTIFACT.ew SAMPLES.f32
 *
 * SAMPLES.f32 holds raw float32 values, one sample after the other. The model has one input and one output.
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgewright.h"

static int fail(const char* what) {
  fprintf(stderr, "classify: %s\n", what);
  return 1;
}

/* The whole of a file; its size goes to *size. */
static void* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  void* data = NULL;
  long end = -1;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) end = ftell(file);
  if (end > 0) data = malloc((size_t)end);
  if (data != NULL && (fseek(file, 0, SEEK_SET) != 0 || fread(data, 1, (size_t)end, file) != (size_t)end)) {
    free(data);
    data = NULL;
  }
  if (file != NULL) fclose(file);
  *size = data == NULL ? 0 : (size_t)end;
  return data;
}

int main(int count, char** arguments) {
  edgewright_model* model;
  edgewright_port in, out;
  if (count != 3) return fail("usage: classify ARTIFACT.ew SAMPLES.f32");
  if (edgewright_open(arguments[1], NULL, &model) != EDGEWRIGHT_OK) return fail(edgewright_error());
  if (edgewright_input_count(model) != 1 || edgewright_output_count(model) != 1) {
    return fail("the model has more than one input or output");
  }
  if (edgewright_input_port(model, 0, &in) != EDGEWRIGHT_OK) return fail(edgewright_error());
  if (edgewright_output_port(model, 0, &out) != EDGEWRIGHT_OK) return fail(edgewright_error());

  edgewright_input x;
  x.data = read_file(arguments[2], &x.size_bytes);
  if (x.data == NULL) return fail("the samples cannot be read");
  const size_t samples = x.size_bytes / in.sample_bytes, classes = out.sample_bytes / sizeof(float);
  edgewright_output y = {calloc(samples, out.sample_bytes), samples * out.sample_bytes};
  if (y.data == NULL) return fail("not enough memory");
  if (edgewright_run(model, &x, 1, &y, 1, (int64_t)samples) != EDGEWRIGHT_OK) return fail(edgewright_error());

  for (size_t n = 0; n < samples; ++n) {
    const float* scores = (const float*)y.data + n * classes;
    size_t best = 0;
    for (size_t c = 1; c < classes; ++c) best = scores[c] > scores[best] ? c : best;
    printf("%zu %a\n", best, (double)scores[best]); /* %a shows every bit of the score */
  }
  free((void*)x.data);
  free(y.data);
  edgewright_close(model);
  return 0;
}
