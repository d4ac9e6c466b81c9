/* Edgewright's INT8 engine from C: opens an artifact and runs it, giving the bits that every other way of
 * running it gives.
 *
 *     edgewright_model* model;
 *     if (edgewright_open("model.ew", NULL, &model) != EDGEWRIGHT_OK) puts(edgewright_error());
 *     edgewright_input x = {values, sizeof values};
 *     edgewright_output y = {scores, sizeof scores};
 *     edgewright_run(model, &x, 1, &y, 1, 1);
 *     edgewright_close(model);
 *
 * Errors: a function that can fail returns a status; anything but EDGEWRIGHT_OK leaves a sentence for
 * edgewright_error() and changes nothing else, except that an edgewright_run which fails may have written
 * into the outputs. NULL where a pointer is needed is EDGEWRIGHT_INVALID, never a crash.
 *
 * Threads: edgewright_run and the questions about a model may be called on one model from several threads at
 * once; each call works in a memory of its own. edgewright_close must come after all of them. Different
 * models share nothing. One call runs on its own thread, unless edgewright_set_threads gives it more. The
 * text of the last error belongs to the thread that met it.
 *
 * Trust: plan and weights are untrusted. Every number in them is checked before anything runs, so damaged
 * files are refused and never read or written out of bounds. Whether the files are the ones that were
 * published (the sizes and SHA-256 digests in manifest.json) is checked by the agent when it installs a
 * release, not here.
 *
 * The library starts no threads unless it is told to, writes no files and reads one environment variable,
 * EDGEWRIGHT_CPU. */
#ifndef EDGEWRIGHT_H
#define EDGEWRIGHT_H

#include <stddef.h>
#include <stdint.h>

#if defined(EDGEWRIGHT_BUILD)
#define EDGEWRIGHT_API __attribute__((visibility("default")))
#else
#define EDGEWRIGHT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define EDGEWRIGHT_VERSION "0.1.0" /* of this header; edgewright_version() is that of the library */
#define EDGEWRIGHT_MAX_RANK 6
#define EDGEWRIGHT_MAX_THREADS 64

typedef enum edgewright_status {
  EDGEWRIGHT_OK = 0,
  EDGEWRIGHT_INVALID = 1,     /* the caller's mistake: a pointer, size, number or input value */
  EDGEWRIGHT_DAMAGED = 2,     /* the plan or the weights are damaged, or do not belong together */
  EDGEWRIGHT_UNSUPPORTED = 3, /* an operator, plan version or CPU path that is not here */
  EDGEWRIGHT_IO = 4,          /* a file is missing or cannot be read */
  EDGEWRIGHT_NO_MEMORY = 5
} edgewright_status;

typedef enum edgewright_dtype {
  EDGEWRIGHT_FLOAT32 = 0,
  EDGEWRIGHT_INT64 = 1 /* inputs that hold indices, alone */
} edgewright_dtype;

/* A loaded model. It keeps a packed copy of the weights and no hold on files or on the caller's bytes. */
typedef struct edgewright_model edgewright_model;

/* What goes in or comes out. Lives as long as the model. */
typedef struct edgewright_port {
  const char* name; /* UTF-8, ended by a zero byte; name_size counts the bytes before it */
  size_t name_size;
  edgewright_dtype dtype;
  size_t rank;                        /* 1 to 6 */
  int64_t shape[EDGEWRIGHT_MAX_RANK]; /* of one sample, without the batch; 0 beyond `rank` */
  size_t sample_bytes;                /* of one sample */
} edgewright_port;

/* The values of `samples` samples, one after the other, row-major in the port's shape, native byte order,
 * aligned as the dtype asks. `size_bytes` must be samples * sample_bytes exactly. */
typedef struct edgewright_input {
  const void* data;
  size_t size_bytes;
} edgewright_input;

typedef struct edgewright_output {
  void* data;
  size_t size_bytes;
} edgewright_output;

/* Opens an artifact: the directory that holds plan.bin and weights.safetensors. These two are all it reads,
 * and they must not change while it does. `cpu` names the kernel path; where it is NULL or "", EDGEWRIGHT_CPU
 * does, and where that is not set, the best one is taken. Sets *model, to NULL on failure. */
EDGEWRIGHT_API edgewright_status edgewright_open(const char* directory, const char* cpu,
                                                 edgewright_model** model);

/* The same from memory: the bytes of plan.bin and of weights.safetensors, both needed only during the call.
 */
EDGEWRIGHT_API edgewright_status edgewright_open_bytes(const void* plan, size_t plan_bytes,
                                                       const void* weights, size_t weights_bytes,
                                                       const char* cpu, edgewright_model** model);

/* How many threads share one call to edgewright_run, the calling one included: 1 to EDGEWRIGHT_MAX_THREADS, 1
 * after opening. The bits are the same for any number. The model starts threads - 1 threads here and keeps
 * them until it is closed; between calls they sleep. Only while no other thread uses the model.
 *
 * Where several threads run the model at once, one at a time has these threads to help, and the others work
 * alone; none waits. A process that forks may go on with the model: its first run starts new threads. */
EDGEWRIGHT_API edgewright_status edgewright_set_threads(edgewright_model* model, int threads);

/* Frees a model; NULL is allowed. */
EDGEWRIGHT_API void edgewright_close(edgewright_model* model);

/* Number of inputs and outputs, in the order of the model; 0 for NULL. */
EDGEWRIGHT_API size_t edgewright_input_count(const edgewright_model* model);
EDGEWRIGHT_API size_t edgewright_output_count(const edgewright_model* model);

/* Describes input or output number `index`, counted from 0. */
EDGEWRIGHT_API edgewright_status edgewright_input_port(const edgewright_model* model, size_t index,
                                                       edgewright_port* port);
EDGEWRIGHT_API edgewright_status edgewright_output_port(const edgewright_model* model, size_t index,
                                                        edgewright_port* port);

/* Runs `samples` samples, 1 or more. One entry per port, in order; `input_count` and `output_count` must be
 * the model's. An output may overlap neither an input nor another output. */
EDGEWRIGHT_API edgewright_status edgewright_run(const edgewright_model* model, const edgewright_input* inputs,
                                                size_t input_count, const edgewright_output* outputs,
                                                size_t output_count, int64_t samples);

/* Working memory of one call to edgewright_run, in bytes, whatever `samples` is; 0 for NULL. It grows
 * with the number of threads. */
EDGEWRIGHT_API size_t edgewright_memory_bytes(const edgewright_model* model);

/* Memory that the packed weights take, in bytes, until the model is closed; 0 for NULL. With
 * edgewright_memory_bytes for each call at once (up to 16 are kept for later calls) and the program itself,
 * up to some twenty times the size of plan.bin, that is all the model takes. */
EDGEWRIGHT_API size_t edgewright_packed_bytes(const edgewright_model* model);

/* Name of the kernel path in use, such as "avx2"; "" for NULL. */
EDGEWRIGHT_API const char* edgewright_path(const edgewright_model* model);

/* Name of the kernel path number `index` that this machine can run, best first; NULL beyond the last. */
EDGEWRIGHT_API const char* edgewright_usable_path(size_t index);

/* What went wrong last in this thread; "" when nothing has. Valid until this thread's next failure. */
EDGEWRIGHT_API const char* edgewright_error(void);

/* Version of the library, such as "0.1.0". */
EDGEWRIGHT_API const char* edgewright_version(void);

#ifdef __cplusplus
}
#endif

#endif
