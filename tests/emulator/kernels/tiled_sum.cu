// d = a @ b.T for FP32, 64x64 tiles through shared memory: the pattern of every tiled kernel. Tests plant bugs in it by text edits.
constexpr int kTile = 64, kStep = 16;

extern "C" __global__ void tiled_sum(const float* a, const float* b, float* d, int n, int k) {
  __shared__ float sa[kStep][kTile], sb[kStep][kTile];
  float sum[4][4] = {};
  const int t = threadIdx.x, row = t / 16, column = t % 16;
  for (int k0 = 0; k0 < k; k0 += kStep) {
    for (int i = t; i < kStep * kTile; i += 256) {
      sa[i % kStep][i / kStep] = a[(blockIdx.y * kTile + i / kStep) * k + k0 + i % kStep];
      sb[i % kStep][i / kStep] = b[(blockIdx.x * kTile + i / kStep) * k + k0 + i % kStep];
    }
    __syncthreads();  // the tile is there
    for (int kk = 0; kk < kStep; ++kk)
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(sa[kk][row + 16 * i], sb[kk][column + 16 * j], sum[i][j]);
    __syncthreads();  // everybody has read it
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) d[(blockIdx.y * kTile + row + 16 * i) * n + blockIdx.x * kTile + column + 16 * j] = sum[i][j];
}
