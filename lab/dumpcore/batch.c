/*
 * Makes xl dump-core fast where a mapping takes long. Of a guest that is not PV
 * it asks for each frame below 4 GB, one by one, whether there is one or not:
 * with this library loaded before libxenforeignmemory it gets them from batches.
 * What it writes is the same.
 */
typedef unsigned long frame_t;

/* Xen, tools/libs/foreignmemory/include/xenforeignmemory.h, since 4.9 */
extern void *xenforeignmemory_map2(void *handle, unsigned domain, void *addr, int prot, int flags,
	unsigned long n, const frame_t frames[], int errs[]);
extern int *__errno_location(void);

enum { BATCH = 512, PAGE = 4096, SYS_MUNMAP = 11 };

static char *batch;   /* where the batch is mapped, or nothing */
static frame_t first; /* of the batch */
static int errs[BATCH];

static long unmap(void *addr, unsigned long length)
{
	long result;

	__asm__ volatile("syscall"
		: "=a"(result)
		: "0"((long)SYS_MUNMAP), "D"(addr), "S"(length)
		: "rcx", "r11", "memory");
	return result;
}

/* A page of the batch stays mapped until the next batch. */
int munmap(void *addr, unsigned long length)
{
	long result;

	if (batch && (char *)addr >= batch && (char *)addr < batch + BATCH * PAGE)
		return 0;
	result = unmap(addr, length);
	if (result < 0) {
		*__errno_location() = -result;
		return -1;
	}
	return 0;
}

void *xenforeignmemory_map(void *handle, unsigned domain, int prot, unsigned long n,
	const frame_t frames[], int err[])
{
	static frame_t asked;

	/* Only who goes through them in order wants the next. */
	if (n == 1 && !err && frames[0] == asked + 1 && (!batch || frames[0] - first >= BATCH)) {
		static frame_t next[BATCH];

		if (batch)
			unmap(batch, BATCH * PAGE);
		first = frames[0];
		for (int i = 0; i < BATCH; i++)
			next[i] = first + i;
		batch = xenforeignmemory_map2(handle, domain, 0, prot, 0, BATCH, next, errs);
	}
	asked = frames[0];
	if (n != 1 || err || !batch || frames[0] - first >= BATCH)
		return xenforeignmemory_map2(handle, domain, 0, prot, 0, n, frames, err);
	if (errs[frames[0] - first]) {
		*__errno_location() = -errs[frames[0] - first];
		return 0;
	}
	return batch + (frames[0] - first) * PAGE;
}
