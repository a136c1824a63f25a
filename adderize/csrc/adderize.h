/* adderize: native kernels of the adder convolution, float32, for CPUs. */
#ifndef ADDERIZE_H
#define ADDERIZE_H

#ifdef __cplusplus
extern "C" {
#endif

#define ADDERIZE_API __attribute__((visibility("default")))

/* Raised whenever a function below changes its meaning, its arguments or disappears. */
#define ADDERIZE_ABI_VERSION 1
ADDERIZE_API int adderize_abi_version(void);

#ifdef __cplusplus
}
#endif
#endif
